"""Stage predict: the predictions of a checkpoint for single images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from datasets.base.files import PathLike
from datasets.manifest import MANIFEST
from datasets.validation import Validation
from mae.config import DeviceConfig
from mae.launch import RanksFailed
from mae.prediction import Predictions
from mae.prediction import predict as predict_images
from tasks.stage import stage_task

PICTURES = 20  # two per class of the sample; the report shows at most 24


@stage_task("predict", timeout_hours=24, final=(RanksFailed,))
def predict(
    checkpoint: PathLike, images: Sequence[PathLike], out: Path, device: DeviceConfig, seed: int = 0
) -> Predictions:
    """Predict images: reconstructions with a MAE, classes with a classifier."""
    return predict_images(checkpoint, images, out, device=device, seed=seed)


def validation_images(validation: Validation, count: int = PICTURES) -> list[Path]:
    """Return usable validation images, evenly spaced in the manifest so that all classes appear."""
    kept = [("split", "=", "val"), ("kept", "=", True)]
    usable = pq.read_table(validation.directory / MANIFEST, columns=["path"], filters=kept).column("path")
    taken = min(count, len(usable))
    return [validation.root / usable[place * len(usable) // taken].as_py() for place in range(taken)]
