"""The rows of manifest.parquet: one per file, every fault with its reason, in the order (split, class, path).

`datasets.manifest.faults` says which faults there are and what becomes of each. Every file has its row, and nothing
is done to any file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.base.files import PathLike

MANIFEST = "manifest.parquet"
USABLE = ("ok", "converted", "duplicate")
ROW_GROUP = 1 << 16  # rows: what a reader that streams holds at a time

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
    digest: str | None  # SHA-256; none for what was not read
    checksum: str | None  # XXH3-128, by which it is recognised when it is read again
    status: str  # ok | converted | the fault that decided
    reason: str
    faults: str = ""  # the names of all that was found, sorted, with commas
    kept: bool = False  # whether the image is part of the records


def read_manifest(path: PathLike) -> list[ManifestRow]:
    """The rows of a manifest.parquet, in order."""
    return list(iterate_manifest(path))


def iterate_manifest(path: PathLike) -> Iterator[ManifestRow]:
    """The rows of a manifest.parquet in order, of which few are in memory at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=8192):
            yield from map(ManifestRow._make, zip(*(batch.column(name).to_pylist() for name in ManifestRow._fields)))


def read_statuses(path: PathLike) -> list[str]:
    """The status column of a manifest.parquet, in order."""
    return pq.read_table(path, columns=["status"]).column("status").to_pylist()


def fault_counts(statuses: Iterable[str]) -> dict[str, int]:
    """Number of rows of each status but `ok`, by name."""
    return {status: count for status, count in sorted(Counter(statuses).items()) if status != "ok"}


@contextmanager
def manifest_writer(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that appends tables of SCHEMA; equal rows give equal bytes, however they were cut."""
    waiting: list[pa.Table] = []

    def append(table: pa.Table) -> None:
        waiting.append(table)
        if sum(map(len, waiting)) >= ROW_GROUP:
            flush(last=False)

    def flush(*, last: bool) -> None:
        rows = pa.concat_tables(waiting).combine_chunks()
        whole = len(rows) if last else len(rows) // ROW_GROUP * ROW_GROUP
        for start in range(0, whole, ROW_GROUP):
            writer.write_table(pa.Table.from_batches(rows.slice(start, min(ROW_GROUP, whole - start)).to_batches()))
        waiting[:] = [rows.slice(whole)]

    with open(path, "wb") as file, pq.ParquetWriter(file, SCHEMA) as writer:
        yield append
        if waiting:
            flush(last=True)
