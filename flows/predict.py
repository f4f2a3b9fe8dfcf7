"""mae-predict: apply a checkpoint to images."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

import tasks.predict
from mae.config import DeviceConfig, Target
from mae.prediction import Predictions


@flow(name="mae-predict")
def mae_predict(
    checkpoint: str, images: list[str], out: str, target: Target = "CPU", seed: int = 0, python: str | None = None
) -> Predictions:
    """Write a checkpoint's predictions to the folder `out`: reconstructions from a MAE, classes from a classifier.

    Args:
        checkpoint: name of a published model, or path.
        images: files, folders or http(s) addresses.
        python: interpreter that computes. Default: $MAE_PYTHON, or the worker's.
    """
    return tasks.predict.predict(checkpoint, images, Path(out), DeviceConfig(target=target, python=python), seed)
