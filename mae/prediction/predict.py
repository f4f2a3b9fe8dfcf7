"""Predicts images with a checkpoint and writes a table, and for a MAE one picture per image.

A later call with the same folder adds to it. A row is identified by the image's path and content, the checkpoint and
the seed. A row with the same identity is kept, unless its picture was changed or this code would compute another one.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from datasets.base.digests import file_digest, value_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, atomic_write
from datasets.base.lock import exclusive
from datasets.images import decode
from mae.config.sections import DeviceConfig, Target
from mae.device.context import check_target, free_devices, setup
from mae.launch.call import in_child
from mae.prediction.images import Source, sources
from mae.runs.model_file import model_digest
from mae.weights.hub import find_weights

TABLE, PICTURES = "predictions.parquet", "reconstructions"
VERSION = 3  # raise it when the same inputs give another row or picture

Row = dict[str, Any]
CPU = DeviceConfig()

logger = logging.getLogger(__name__)


class Predictions(StageResult):
    """The files that `predict` wrote."""

    table: Path  # one row per image; may also have rows of earlier calls
    digest: str  # SHA-256 of the table
    images: int  # number of images of this call
    pictures: Optional[Path] = None  # folder of the reconstructions; none for a classifier


class _Request(NamedTuple):
    """An image to predict."""

    file: Path
    stem: str  # of its picture's name
    row: Row  # without the results


def predict(
    checkpoint: PathLike, images: Sequence[PathLike], out: PathLike, *, device: DeviceConfig = CPU, seed: int = 0
) -> Predictions:
    """Predict images and add them to `out`/predictions.parquet, and for a MAE add a picture per image.

    Args:
        checkpoint: a published name, a model file, a checkpoint directory or a run directory.
        images: files, http(s) addresses, or folders that are searched for images.
        device: its target and its interpreter are used.
        seed: seed of the masks. The seed and an image's content determine its mask.

    Raises:
        InputError: there are no images, an image cannot be read, the checkpoint is not a model that predicts, or `out`
            has predictions of the other kind of model. Nothing is written then.
        RanksFailed: the process that predicts ended before its work was done.
    """
    model_path, out = find_weights(checkpoint), Path(out)
    shared = {"checkpoint_digest": model_digest(model_path), "seed": seed, "version": VERSION}
    requests: dict[tuple[Any, ...], tuple[Source, Row]] = {}
    for image in sources(images):
        row = {"path": image.name, "image_digest": image.digest, **shared}
        requests[_identity(row)] = image, row
    earlier = _read(out)
    missing = [request for identity, request in requests.items() if not _is_intact(earlier.get(identity), out)]
    if missing:
        check_target(device)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{PICTURES}.partial-", dir=out) as name:
            drawn, downloads = Path(name, PICTURES), Path(name, "downloads")
            drawn.mkdir()
            downloads.mkdir()
            stored = [_Request(_file(source, downloads), source.stem, row) for source, row in missing]
            devices = free_devices(device.target, 1)
            rows = in_child(_predict, device, near=out, devices=devices)(model_path, stored, drawn, device.target)
            with exclusive(out):
                _merge(out, rows, drawn)
    else:
        logger.info("%s: reusing the predictions", out / TABLE)
    table = out / TABLE
    pictures = out / PICTURES if "image_file" in pq.read_schema(table).names else None
    digest = file_digest(table)
    return Predictions(table=table, digest=digest, images=len(requests), pictures=pictures, reused=not missing)


def picture_name(stem: str, *parts: object) -> str:
    """Return a file name that no picture with other `parts` has; it begins with `stem` so that people recognise it."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', stem)[:80]}-{value_digest(parts)}.png"


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("path", "image_digest", "checkpoint_digest", "seed"))


def _file(source: Source, downloads: Path) -> Path:
    """Return the file of an image, which is written to `downloads` if the image came from an address."""
    if isinstance(source.content, Path):
        return source.content
    assert isinstance(source.content, bytes)  # an image in memory has no path or address
    path = downloads / source.digest
    path.write_bytes(source.content)
    return path


def _predict(model_path: Path, requests: list[_Request], folder: Path, target: Target) -> list[Row]:
    """Return the completed rows, and write a MAE's pictures to `folder`: original, masked and filled side by side.

    A child process calls this.
    """
    from mae.prediction.predictors import Classifier, Reconstructor
    from mae.weights.restore import load_model

    setup(target, ranks=1)
    model, rows = load_model(model_path), []
    if model.card.kind == "classifier":
        classify = Classifier(model, model_path)
        for file, _, row in requests:
            best = classify(decode(file, where=row["path"]))
            rows.append({**row, "classes": [name for name, _ in best], "probabilities": [p for _, p in best]})
        return rows
    reconstruct = Reconstructor(model, model_path)
    for file, stem, row in requests:
        result = reconstruct(decode(file, where=row["path"]), seed=row["seed"], digest=row["image_digest"])
        name = picture_name(stem, *_identity(row))
        Image.fromarray(np.concatenate([result.original, result.masked, result.filled], axis=1)).save(folder / name)
        measured = {
            "image_file": f"{PICTURES}/{name}",
            "picture_digest": file_digest(folder / name),
            "mask_ratio": result.mask_ratio,
            "loss": result.loss,
            "true_patch_statistics": result.true_patch_statistics,
        }
        rows.append({**row, **measured})
    return rows


def _merge(out: Path, rows: list[Row], pictures: Path) -> None:
    """Add rows to the table, after their pictures, so that no row names a picture that does not exist."""
    merged = _read(out)
    is_mae = "image_file" in rows[0]
    if any(("image_file" in row) != is_mae for row in merged.values()):
        kinds = ["classes by a classifier", "reconstructions by a MAE"]
        expected, todo = f"{kinds[is_mae]}, or no table", "choose another output directory"
        raise InputError(out / TABLE, expected=expected, found=kinds[not is_mae], todo=todo)
    for picture in pictures.iterdir():
        atomic_write(out / PICTURES / picture.name, picture.read_bytes())
    merged.update({_identity(row): row for row in rows})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(merged.values())), sink)
    atomic_write(out / TABLE, sink.getvalue().to_pybytes())


def _read(out: Path) -> dict[tuple[Any, ...], Row]:
    """Return the rows of earlier calls by identity. A table that cannot be read is replaced, with a warning."""
    if not (out / TABLE).exists():
        return {}
    try:
        return {_identity(row): row for row in pq.read_table(out / TABLE).to_pylist()}
    except (OSError, pa.ArrowException, KeyError) as error:
        logger.warning("%s: replacing a table that cannot be read: %r", out / TABLE, error)
        return {}


def _is_intact(row: Optional[Row], out: Path) -> bool:
    """Return whether this version of the code wrote the row, and its picture is unchanged."""
    if row is None or row.get("version") != VERSION:
        return False
    if "image_file" not in row:
        return True
    picture = out / row["image_file"]
    return picture.is_file() and file_digest(picture) == row["picture_digest"]
