"""The rows of manifest.parquet: one per file, every fault with its reason.

What becomes of each status (nothing else is done to any file, and every one has its row):

    ok           stored as it is
    converted    good, but stored as RGB JPEG: CMYK, palette, alpha, 16 bits, formats other than JPEG and PNG
    duplicate    same bytes as an earlier file of its split; kept, as published ImageNet numbers keep theirs
    leak         a training file with the bytes of a validation file; excluded, so that evaluation stays honest
    corrupt      announces an image and does not decode to its end; excluded, as are all below
    not_image    no image by its first bytes, or a hidden file
    empty        no bytes
    too_large    more pixels or bytes than are safe to decode; not decoded
    unsupported  decodes to a mode that has no meaning as RGB
    unreadable   cannot be read: permission, broken link, no regular file, name not in UTF-8
    no_class     an image beside the class folders
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.stage import PathLike

MANIFEST = "manifest.parquet"
USABLE = ("ok", "converted", "duplicate")

_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("split", pa.string()),
        ("class_name", pa.string()),
        ("label", pa.int32()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("digest", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("faults", pa.string()),
        ("kept", pa.bool_()),
    ]
)


class ManifestRow(NamedTuple):
    """One file of the data set; the columns of manifest.parquet."""

    path: str  # relative to the root
    split: str
    class_name: str
    label: int  # index in the sorted class names of train; -1 without a class
    bytes: int
    width: int | None
    height: int | None
    mode: str | None  # Pillow's
    format: str | None  # by magic bytes
    digest: str | None  # SHA-256; none for what was not read
    status: str
    reason: str
    faults: str = ""  # the names of all that was found, sorted, with commas; the status is the one that decided
    kept: bool = False  # whether the image is part of the records


def read_manifest(path: PathLike) -> list[ManifestRow]:
    """The rows of a manifest.parquet, in order."""
    table = pq.read_table(path)
    return [ManifestRow(*values) for values in zip(*(table.column(field).to_pylist() for field in ManifestRow._fields))]


def read_statuses(path: PathLike) -> list[str]:
    """The status column of a manifest.parquet, in order."""
    return pq.read_table(path, columns=["status"]).column("status").to_pylist()


def fault_counts(statuses: Iterable[str]) -> dict[str, int]:
    """Number of rows of each status but `ok`, by name."""
    return {status: count for status, count in sorted(Counter(statuses).items()) if status != "ok"}


def write_manifest(path: PathLike, rows: list[ManifestRow]) -> None:
    """Write rows to a parquet file; equal rows give equal bytes."""
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows), _SCHEMA)]
    pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), path)


def mark_copies(rows: list[ManifestRow]) -> list[ManifestRow]:
    """Mark training files whose bytes are in val too (leak), then repeated files within a split (duplicate)."""
    first: dict[tuple[str, str | None], ManifestRow] = {}
    for row in rows:
        if row.status in USABLE:
            first.setdefault((row.split, row.digest), row)
    return [_mark_copy(row, first) if row.status in USABLE else row for row in rows]


def _mark_copy(row: ManifestRow, first: dict[tuple[str, str | None], ManifestRow]) -> ManifestRow:
    validation_copy = first.get(("val", row.digest)) if row.split == "train" else None
    original = first[row.split, row.digest]
    if validation_copy is not None:
        status, copied = "leak", validation_copy
    elif original is not row:
        status, copied = "duplicate", original
    else:
        return row
    return row._replace(
        status=status, reason="; ".join(filter(None, (f"same bytes as {_named(copied, row)}", row.reason)))
    )


def _named(copy: ManifestRow, row: ManifestRow) -> str:
    return copy.path if copy.class_name == row.class_name else f"{copy.path}, which is of another class"
