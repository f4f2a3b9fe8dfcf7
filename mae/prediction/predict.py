"""Stage predict: a checkpoint's predictions for images as a table, and of a MAE a picture per image.

A later call into the same folder adds to it. A row belongs to a path, its content, a checkpoint and a seed; only a row
of the same four is replaced, and only where this code would now make another.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from datasets.base.digests import file_digest, value_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, atomic_write
from datasets.base.lock import exclusive
from mae.api.auto import weights
from mae.config.sections import DeviceConfig, Target
from mae.device.context import check_target, setup
from mae.prediction.images import ImageLike, Source, sources
from mae.prediction.predictors import Classifier, Reconstructor
from mae.runs.model_file import model_digest
from mae.weights.restore import load_model

TABLE, PICTURES = "predictions.parquet", "reconstructions"
VERSION = 3  # raise it when the same inputs give another row or picture
IDENTITY = ("path", "image_digest", "checkpoint_digest", "seed")

logger = logging.getLogger(__name__)


class Predictions(StageResult):
    """`table` has one row per image; `pictures` is the folder of reconstructions, none for a classifier.

    `images` counts those of this call; the table may hold rows of earlier ones.
    """

    table: Path
    digest: str
    images: int
    pictures: Optional[Path] = None


def predict(
    checkpoint: PathLike, images: Sequence[ImageLike], out: PathLike, *, target: Target = "CPU", seed: int = 0
) -> Predictions:
    """Predict every image and add it to `out`/predictions.parquet; of a MAE also one picture an image.

    Args:
        checkpoint: a known name, a model file, a checkpoint directory or a run directory.
        images: files, http(s) addresses, or folders that are searched for images.
        target: device to run on.
        seed: of the masks; an image's mask is a function of the seed and the image's content.

    Raises:
        InputError: there is no image, one cannot be read, the checkpoint is none, or `out` holds what the other kind
            of model predicted. Then nothing is written.
    """
    model_path, out = weights(checkpoint), Path(out)
    found = {
        tuple(row[key] for key in IDENTITY): (source, row)
        for source, row in _requests(sources(images), model_digest(model_path), seed)
    }
    earlier = _read(out)
    missing = [pair for identity, pair in found.items() if not _intact(earlier.get(identity), out)]
    if missing:
        check_target(DeviceConfig(target=target))
        setup(target, ranks=1)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{PICTURES}.partial-", dir=out) as partial:
            kind, rows = _predict(model_path, missing, Path(partial), seed)
            with exclusive(out):
                _merge(out, rows, kind, Path(partial))
    else:
        logger.info("%s: reusing the predictions", out / TABLE)
    table = out / TABLE
    pictures = out / PICTURES if "image_file" in pq.read_schema(table).names else None
    return Predictions(table=table, digest=file_digest(table), images=len(found), pictures=pictures, reused=not missing)


def picture_name(stem: str, *parts: object) -> str:
    """A file name for what was made of an image: nothing else has the same `parts`."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', stem)[:80]}-{value_digest(parts)}.png"


def _requests(images: list[Source], checkpoint_digest: str, seed: int) -> Iterator[tuple[Source, dict[str, Any]]]:
    for image in images:
        yield (
            image,
            {
                "path": image.name,
                "image_digest": image.digest,
                "checkpoint_digest": checkpoint_digest,
                "seed": seed,
                "version": VERSION,
            },
        )


def _predict(
    model_path: Path, requests: list[tuple[Source, dict[str, Any]]], partial: Path, seed: int
) -> tuple[str, list[dict[str, Any]]]:
    """The rows of the requests; a MAE's pictures are written to `partial`: original | masked | filled."""
    model = load_model(model_path)
    card = model.card
    if card.kind == "classifier":
        classify = Classifier(model, card.labels)
        rows = []
        for source, row in requests:
            best = classify(source.open())
            rows.append({**row, "classes": [name for name, _ in best], "probabilities": [p for _, p in best]})
        return card.kind, rows
    if card.kind != "mae":
        todo = "give a pre-training checkpoint with its decoder, or a classifier"
        raise InputError(model_path, expected="a model that predicts", found=f"a bare {card.kind}", todo=todo)
    reconstruct = Reconstructor(model, card.mask_ratio or 0.75)
    rows = []
    for source, row in requests:
        result = reconstruct(source.open(), seed=seed, digest=source.digest)
        name = picture_name(source.stem, *(row[key] for key in IDENTITY))
        panels = np.concatenate([result.original, result.masked, result.filled], axis=1)
        Image.fromarray(panels).save(partial / name)
        rows.append(
            {
                **row,
                "image_file": f"{PICTURES}/{name}",
                "picture_digest": file_digest(partial / name),
                "mask_ratio": result.mask_ratio,
                "loss": result.loss,
                "true_patch_statistics": result.true_patch_statistics,
            }
        )
    return card.kind, rows


def _merge(out: Path, rows: list[dict[str, Any]], kind: str, partial: Path) -> None:
    """Put rows into the table and their pictures beside it, the pictures first."""
    merged = _read(out)
    if any(("image_file" in row) != (kind == "mae") for row in merged.values()):
        found = "a classifier's" if kind == "mae" else "reconstructions by a MAE"
        todo = "choose another output directory"
        raise InputError(out / TABLE, expected=f"predictions of a {kind}, or none", found=found, todo=todo)
    for picture in partial.iterdir():
        atomic_write(out / PICTURES / picture.name, picture.read_bytes())
    merged.update({tuple(row[key] for key in IDENTITY): row for row in rows})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(merged.values())), sink)
    atomic_write(out / TABLE, sink.getvalue().to_pybytes())


def _read(out: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of an earlier call by their identity; a table that does not have it is replaced."""
    if not (out / TABLE).exists():
        return {}
    try:
        rows = pq.read_table(out / TABLE).to_pylist()
        return {tuple(row[key] for key in IDENTITY): row for row in rows}
    except (OSError, pa.ArrowException, KeyError) as error:
        logger.warning("%s: replaced, as its rows cannot be told apart: %r", out / TABLE, error)
        return {}


def _intact(row: dict[str, Any] | None, out: Path) -> bool:
    """Whether this code wrote the row and its picture is there unchanged."""
    if row is None or row.get("version") != VERSION:
        return False
    if "image_file" not in row:
        return True
    picture = out / row["image_file"]
    return picture.is_file() and file_digest(picture) == row["picture_digest"]
