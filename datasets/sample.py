"""The shipped sample as ImageNet-style folders: 7,000 images of Fashion-MNIST, 28 x 28, grey, ten classes.

Source: Fashion-MNIST, (c) 2017 Zalando SE, MIT licence; the notice travels with the images as LICENSE.txt.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, atomic_directory, refuse_foreign, write_json
from datasets.layout import MARKERS

logger = logging.getLogger(__name__)

NAME = "fashion-mnist-7k"
JPEG_QUALITY = 95  # decoded pixels differ from the source PNG by 0.9 of 255 grey levels on average
MARKER = MARKERS["sample"]
_SAMPLES = Path(__file__).parent / "samples"
_OURS = re.compile(r"(train|val)/(\w+)/\2_\d{4}\.JPEG|LICENSE\.txt")


class SampleData(StageResult):
    """The unpacked sample: `train` and `val` count the images under root/train and root/val."""

    root: Path
    train: int
    val: int


def sample_root(workspace: PathLike) -> Path:
    """Where the pipeline unpacks the sample."""
    return Path(workspace) / "datasets" / NAME


def unpack_sample(
    directory: PathLike, *, train_per_class: int | None = None, val_per_class: int | None = None
) -> SampleData:
    """Write the shipped images as train/<class>/*.JPEG and val/<class>/*.JPEG under `directory`.

    The PNG of the parquet file is re-encoded as grey JPEG of quality 95, so that the files are what their extension
    says. The first `train_per_class` and `val_per_class` images of each class are taken; none takes all
    (600 and 100). The same call over a complete folder verifies every byte and reuses it; a damaged one is rewritten.

    Raises:
        InputError: a count is out of range, or `directory` holds files that this function did not write.
    """
    directory = Path(directory)
    source = _SAMPLES / f"{NAME}.parquet"
    request = {"source": file_digest(source), "train_per_class": train_per_class, "val_per_class": val_per_class}
    refuse_foreign(directory, MARKER)
    fault = _fault(directory, request)
    if fault is None:
        logger.info("%s: reusing the unpacked sample", directory)
        return _result(directory, reused=True)
    if directory.exists():
        logger.warning("%s: unpacking the sample again: %s", directory, fault)
    rows = _select(pq.read_table(source).to_pylist(), {"train": train_per_class, "val": val_per_class})
    with atomic_directory(directory) as partial:
        for (split, class_name), images in rows.items():
            folder = partial / split / class_name
            folder.mkdir(parents=True)
            for number, png in enumerate(images):
                (folder / f"{class_name}_{number:04d}.JPEG").write_bytes(_jpeg(png))
        (partial / "LICENSE.txt").write_bytes((_SAMPLES / "fashion-mnist-LICENSE.txt").read_bytes())
        counts = {split: sum(len(v) for (s, _), v in rows.items() if s == split) for split in ("train", "val")}
        write_json(partial / MARKER, {**request, **counts, "digest": _tree_digest(partial)})
    logger.info("%s: unpacked %d + %d images of %s", directory, counts["train"], counts["val"], NAME)
    return _result(directory, reused=False)


def _select(rows: list[dict[str, Any]], per_class: dict[str, int | None]) -> dict[tuple[str, str], list[bytes]]:
    """The PNG bytes of each (split, class), cut to the number asked for."""
    groups: dict[tuple[str, str], list[bytes]] = {}
    for row in rows:
        groups.setdefault((row["split"], row["class_name"]), []).append(row["image"])
    for split, wanted in per_class.items():
        most = min(len(images) for (s, _), images in groups.items() if s == split)
        if wanted is not None and not 1 <= wanted <= most:
            raise InputError(
                f"{split}_per_class",
                expected=f"1 to {most} images a class",
                found=str(wanted),
                todo="correct the number",
            )
    return {key: images[: per_class[key[0]]] for key, images in groups.items()}


def _jpeg(png: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def _result(directory: Path, *, reused: bool) -> SampleData:
    marker = json.loads((directory / MARKER).read_text())
    return SampleData(root=directory, train=marker["train"], val=marker["val"], reused=reused)


def _fault(directory: Path, request: dict[str, Any]) -> str | None:
    """Why the folder cannot be reused for this request; none if it can.

    Raises:
        InputError: the folder also holds somebody else's files, which rewriting would delete.
    """
    if not directory.exists():
        return "it is missing"
    try:
        marker = json.loads((directory / MARKER).read_text())
    except (OSError, ValueError):
        return f"{MARKER} is missing or damaged"
    for path in _files(directory):
        if not _OURS.fullmatch(path.relative_to(directory).as_posix()):
            raise InputError(
                path,
                expected=f"only the files of the {NAME} sample in {directory}",
                found="a file that does not belong to it",
                todo="move it away or unpack the sample elsewhere",
            )
    if any(marker.get(key) != value for key, value in request.items()):
        return "other images were asked for then"
    if marker.get("digest") != _tree_digest(directory):
        return "its files changed since they were written"
    return None


def _files(directory: Path) -> Iterator[Path]:
    """Every file but the marker and hidden ones, in a fixed order."""
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            if name != MARKER and not name.startswith("."):
                yield Path(folder, name)


def _tree_digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(directory):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(directory)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
