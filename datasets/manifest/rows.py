"""The rows of manifest.parquet: one for each file, with every fault and its reason, in the order (split, class, path).

`datasets.manifest.faults` lists the faults and what becomes of a file with each. Validation changes no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.base.files import PathLike, fsync

MANIFEST = "manifest.parquet"
ROW_GROUP = 1 << 16  # rows; a reader that streams holds one group at a time

SCHEMA = pa.schema(
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
        ("checksum", pa.string()),
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
    label: int  # index in the sorted class names of the data set; -1 without one
    bytes: int
    width: int | None
    height: int | None
    mode: str | None  # Pillow's
    format: str | None  # by magic bytes
    digest: str | None  # SHA-256; None for a file that was not read
    checksum: str | None  # XXH3-128, compared when the file is read again
    status: str  # ok | converted | the fault that decided
    reason: str
    faults: str = ""  # the sorted names of all faults, with commas
    kept: bool = False  # whether the image is part of the records


def read_manifest(path: PathLike) -> list[ManifestRow]:
    """Return the rows of a manifest.parquet, in order."""
    return list(iterate_manifest(path))


def iterate_manifest(path: PathLike) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest.parquet in order; few of them are in memory at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=8192):
            yield from map(ManifestRow._make, zip(*(batch.column(name).to_pylist() for name in ManifestRow._fields)))


def fault_counts(path: PathLike) -> dict[str, int]:
    """Return the number of rows of a manifest.parquet with each status except "ok", by name."""
    statuses = Counter(pq.read_table(path, columns=["status"])["status"].to_pylist())
    return {status: count for status, count in sorted(statuses.items()) if status != "ok"}


def write_manifest(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables of SCHEMA, each as a row group, and have them on the disk before returning."""
    with open(path, "wb") as file, pq.ParquetWriter(file, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
    fsync(path)
