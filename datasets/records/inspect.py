"""What is in a shard, and in one record of it."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, Optional

from PIL import Image

from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, atomic_write
from datasets.records.index import read_sources, source_rows

_FIRST = 5  # rows shown of a shard


class ShardView(StageResult):
    """A shard. `classes` counts the records of each class; sizes in bytes."""

    file: Path
    images: int
    bytes: int
    header_bytes: int
    page_bytes: int
    image_pages: int
    field_pages: int
    fields: dict[str, Any]
    classes: dict[str, int]
    converted: int
    first: list[dict[str, Any]]


class RecordView(StageResult):
    """A record. `digest` and `bytes` are of what is stored; `source` is the row of the file it was made from."""

    file: Path
    row: int
    label: int
    bytes: int
    digest: str
    format: Optional[str]
    mode: str
    width: int
    height: int
    source: dict[str, Any]
    saved: Optional[Path] = None


def inspect_shard(file: PathLike) -> ShardView:
    """Counts, classes, pages and first rows of a MindRecord file that `mae data shard` wrote; no image is read.

    Raises:
        InputError: it is none, or its table of sources is missing.
    """
    path = Path(file)
    header_bytes, header = _header(path)
    sources = read_sources(path)
    kinds = Counter(page["page_type"] for page in header["page"])
    return ShardView(
        file=path,
        images=len(sources),
        bytes=path.stat().st_size,
        header_bytes=header_bytes,
        page_bytes=header["page_size"],
        image_pages=kinds["BLOB_DATA"],
        field_pages=kinds["RAW_DATA"],
        fields=header["schema"][0]["schema"],
        classes=dict(sorted(Counter(sources.column("class_name").to_pylist()).items())),
        converted=sum(sources.column("converted").to_pylist()),
        first=[row._asdict() for row in source_rows(sources.slice(0, _FIRST))],
    )


def inspect_record(file: PathLike, row: int, *, save: PathLike | None = None) -> RecordView:
    """One record of a shard, counted from 0; `save` receives the bytes that are stored of its image.

    Raises:
        InputError: the shard is none, or has no such record.
    """
    path = Path(file)
    _header(path)
    sources = read_sources(path)
    if not 0 <= row < len(sources):
        expected = f"a row from 0 to {len(sources) - 1}"
        raise InputError(path, expected=expected, found=str(row), todo="correct the row")
    image, label = _record(path, row)
    if save is not None:
        atomic_write(save, image)
    with Image.open(io.BytesIO(image)) as opened:
        return RecordView(
            file=path,
            row=row,
            label=label,
            bytes=len(image),
            digest=hashlib.sha256(image).hexdigest(),
            format=opened.format,
            mode=opened.mode,
            width=opened.width,
            height=opened.height,
            source=next(source_rows(sources.slice(row, 1)))._asdict(),
            saved=None if save is None else Path(save),
        )


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Size and content of the header: 8 bytes with the length of a JSON text, the text, zeros."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return int(content["header_size"]), content
    except OSError as error:
        found = error.strerror or type(error).__name__
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError):
        found = "another kind of file"
    raise InputError(path, expected="a MindRecord file", found=found, todo="name a .mindrecord file of the records")


def _record(path: Path, row: int) -> tuple[bytes, int]:
    import mindspore.dataset as ds  # seconds to import, and needed for single records only

    data = ds.MindDataset(str(path), ["image", "label"], 1, sampler=ds.SubsetSampler([row]))
    image, label = next(iter(data.create_tuple_iterator(num_epochs=1, output_numpy=True)))
    return image.tobytes(), int(label)
