"""The source image of each record, from the table that belongs to each shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.manifest.rows import Int32, rows_of, schema_of
from datasets.records.index import REDO, SOURCES, load_index

_SLICE = 1 << 14  # rows that are Python objects at a time


class SourceRow(NamedTuple):
    """The source image of a record; the columns of a shard's sources.parquet."""

    path: str  # relative to the root
    class_name: str
    label: Int32
    bytes: int  # of the source file
    digest: str  # SHA-256 of the source file
    checksum: str  # XXH3-128 of the source file
    convert: str  # the faults for which it was converted, with commas
    converted: bool  # whether the stored bytes differ from the source file's


SOURCES_SCHEMA = schema_of(SourceRow)


def sources(directory: PathLike, split: str, samples: list[int]) -> list[SourceRow]:
    """Return the source images of samples of a split, in the order of `samples`.

    Samples are numbered from 0 through the split's shards, in the order of the index. Each shard's table is read once.

    Raises:
        InputError: the split has no such sample, or a shard's table is missing.
    """
    found, first = load_index(directory).splits[split], 0
    rows: dict[int, SourceRow] = {}
    for shard in found.shards:
        mine = [sample for sample in samples if first <= sample < first + shard.images]
        if mine:
            table = read_sources(Path(directory) / shard.file).take([sample - first for sample in mine])
            rows |= dict(zip(mine, source_rows(table)))
        first += shard.images
    for sample in samples:
        if sample not in rows:
            expected = f"a sample number from 0 to {found.images - 1} of {split}"
            raise InputError(directory, expected=expected, found=str(sample), todo="correct the number")
    return [rows[sample] for sample in samples]


def source_rows(table: pa.Table) -> Iterator[SourceRow]:
    """Return the rows of a table of `read_sources`."""
    return rows_of(table.to_batches(max_chunksize=_SLICE), SourceRow)


def read_sources(shard_file: Path) -> pa.Table:
    """Read the table of a shard: one row per record, in their order, with the columns of SourceRow.

    Raises:
        InputError: it is missing or damaged.
    """
    path = shard_file.with_name(shard_file.name + SOURCES)
    try:
        return pq.read_table(path, schema=SOURCES_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise InputError(path, expected="the table of the shard's records", found=found, todo=REDO) from None
