"""The rows of manifest.parquet: one for each file, with every fault and its reason, in the order (split, class, path).

`datasets.manifest.faults` lists the faults and what becomes of a file with each. Validation changes no file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.base.files import PathLike, fsync

MANIFEST = "manifest.parquet"
ROW_GROUP = 1 << 16  # rows; a reader that streams holds one group at a time

# Annotations of columns, besides str, int (int64) and bool:
Int32 = int
UInt64 = int
Sha256 = bytes
Xxh3 = bytes
_TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "Int32": pa.int32(),
    "UInt64": pa.uint64(),
    "bool": pa.bool_(),
    "Sha256": pa.binary(32),
    "Xxh3": pa.binary(16),
}
R = TypeVar("R", bound=NamedTuple)


class ManifestRow(NamedTuple):
    """One file of the data set; the columns of manifest.parquet."""

    path: str  # relative to the root
    split: str
    class_name: str
    label: Int32  # index in the sorted class names of the data set; -1 without one
    bytes: int
    width: Int32 | None
    height: Int32 | None
    mode: str | None  # Pillow's
    format: str | None  # by magic bytes
    digest: str | None  # SHA-256; None for a file that was not read
    checksum: str | None  # XXH3-128, compared when the file is read again
    status: str  # ok | converted | the fault that decided
    reason: str
    faults: str = ""  # the sorted names of all faults, with commas
    kept: bool = False  # whether the image is part of the records


def schema_of(row: type[NamedTuple]) -> pa.Schema:
    """Return the columns of a table whose rows are of this class."""
    hints = {name: str(getattr(hint, "__forward_arg__", hint)) for name, hint in row.__annotations__.items()}
    return pa.schema([(name, _TYPES[hint.split(" | ")[0]]) for name, hint in hints.items()])


SCHEMA = schema_of(ManifestRow)


def rows_of(batches: Iterable[pa.RecordBatch], row: type[R]) -> Iterator[R]:
    """Yield the rows of batches of a table; those of one batch are Python objects at a time."""
    for batch in batches:
        yield from map(row._make, zip(*(batch.column(name).to_pylist() for name in row._fields)))


def iterate_manifest(path: PathLike) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest.parquet in order; few of them are in memory at a time."""
    with pq.ParquetFile(path) as file:
        yield from rows_of(file.iter_batches(batch_size=8192), ManifestRow)


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
