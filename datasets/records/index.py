"""What `datasets.records.shard` wrote: the index, the files it names, and where each record comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Optional

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets.base.digests import file_checksum, file_digest, value_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult
from datasets.manifest.rows import MANIFEST

INDEX = "index.json"
STAMPS = "stamps.json"  # size and mtime of each file when it was written; those of index.json are the same on each run
DATABASE = ".db"  # what MindRecord appends to the name of a shard for its SQLite file
SOURCES = ".sources.parquet"  # what is appended for the table of its records
SCHEMA = {"image": {"type": "bytes"}, "label": {"type": "int32"}}
SOURCES_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("class_name", pa.string()),
        ("label", pa.int32()),
        ("bytes", pa.int64()),
        ("digest", pa.string()),
        ("checksum", pa.string()),
        ("convert", pa.string()),
        ("converted", pa.bool_()),
    ]
)
REDO = "run `mae data shard` again"

_SLICE = 1 << 14  # rows that are Python objects at a time

Stamp = tuple[int, int]  # size in bytes, mtime in ns


class Records(StageResult):
    """A sharded data set. `digest` covers the content: shards, labels and manifest; `train` and `val` count records."""

    directory: Path
    digest: str
    train: int
    val: int
    classes: list[str]
    shards: int


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Part):
    """One MindRecord file, the SQLite file beside it (`<file>.db`) and its records' sources, in their order."""

    file: str  # relative to the records directory
    images: int
    bytes: int
    key: str  # digest of all that it was made from: shards of one key hold the same records
    digest: str  # this and the next two: `datasets.base.files.file_checksum`
    database_digest: str
    sources_digest: str

    def digests(self) -> dict[str, str]:
        """The shard's files, relative to the records directory, and the digest of each."""
        return {
            self.file: self.digest,
            self.file + DATABASE: self.database_digest,
            self.file + SOURCES: self.sources_digest,
        }


class Split(_Part):
    """The shards of train or val."""

    images: int
    shards: list[Shard]


class Options(_Part):
    """What the records depend on besides the manifest."""

    shard_mb: int = Field(gt=0)
    short_side: Optional[int] = Field(gt=0)
    seed: int
    convert: list[str]  # the faults for which the validation's policy is to store an image as RGB JPEG


class Index(_Part):
    """index.json. Record i of a shard comes from row i of `<file>.sources.parquet`, whose paths are under `root`."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    classes: list[str]
    splits: dict[str, Split]
    record_schema: dict[str, dict[str, str]] = Field(alias="schema")
    root: Path
    manifest_digest: str
    options: Options
    version: int

    def all_shards(self) -> list[Shard]:
        """The shards of train, then of val."""
        return [shard for split in ("train", "val") for shard in self.splits[split].shards]

    def digests(self) -> dict[str, str]:
        """Every file of the records but index.json, and its digest."""
        return {MANIFEST: self.manifest_digest} | {f: d for s in self.all_shards() for f, d in s.digests().items()}

    def result(self, directory: Path, *, reused: bool) -> Records:
        """What the stage returns for the records in `directory`."""
        shards = self.all_shards()
        return Records(
            directory=directory,
            digest=value_digest([self.classes, self.manifest_digest, [(s.file, s.digest) for s in shards]]),
            train=self.splits["train"].images,
            val=self.splits["val"].images,
            classes=self.classes,
            shards=len(shards),
            reused=reused,
        )


class SourceRow(NamedTuple):
    """Where a record comes from; the columns of a shard's sources.parquet."""

    path: str  # relative to the root
    class_name: str
    label: int
    bytes: int  # of the source file
    digest: str  # SHA-256 of the source file
    checksum: str  # XXH3-128 of it
    convert: str  # the faults for which it was converted, with commas
    converted: bool  # stored as other bytes than those of its source


def load_index(directory: PathLike) -> Index:
    """Read index.json of a records directory; the shards themselves are not looked at (see `datasets.records.check`).

    Raises:
        InputError: it is missing or damaged.
    """
    path = Path(directory) / INDEX
    try:
        return Index.model_validate(json.loads(path.read_text()))
    except OSError:
        found = "no such file"
    except (ValueError, ValidationError) as error:
        found = f"damaged content ({str(error).splitlines()[0]})"
    raise InputError(path, expected="the index of a records directory", found=found, todo=REDO)


def check_labelled(directory: PathLike, *, classes: int, val: int) -> None:
    """Refuse images of so many classes, `val` of them for validation, on which no accuracy can be measured.

    Raises:
        InputError: there are fewer than two classes, or no validation image.
    """
    if classes < 2 or val == 0:
        found = f"{classes} classes and {val} validation images"
        expected, todo = "at least 2 classes and 1 validation image", "use images in class folders"
        raise InputError(directory, expected=expected, found=found, todo=todo)


def source(directory: PathLike, split: str, sample: int) -> SourceRow:
    """Where sample number `sample` of a split comes from: samples are counted through its shards in index order.

    Raises:
        InputError: the split has no such sample, or the shard's table is missing.
    """
    return sources(directory, split, [sample])[0]


def sources(directory: PathLike, split: str, samples: list[int]) -> list[SourceRow]:
    """`source` of many samples, in their order, with one look into each shard's table."""
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
    """The rows of a table that `read_sources` has read, of which few are Python objects at a time."""
    for start in range(0, len(table), _SLICE):
        part = table.slice(start, _SLICE)
        yield from map(SourceRow._make, zip(*(part.column(field).to_pylist() for field in SourceRow._fields)))


def read_sources(shard_file: Path) -> pa.Table:
    """The table beside a shard: a row for each record, in their order, with the columns of SourceRow."""
    path = shard_file.with_name(shard_file.name + SOURCES)
    try:
        return pq.read_table(path, schema=SOURCES_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise InputError(path, expected="the table of the shard's records", found=found, todo=REDO) from None


def stamp(path: Path) -> Stamp:
    """Size and mtime of a file: what shows, without reading it, that it was not written to."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def read_stamps(directory: Path) -> dict[str, Stamp]:
    """The sizes and mtimes that the files of a records directory had when they were written; empty if unknown."""
    try:
        content = json.loads((directory / STAMPS).read_text())
        return {name: (int(size), int(mtime)) for name, (size, mtime) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def damaged_files(
    directory: Path, digests: dict[str, str], stamps: dict[str, Stamp] | None = None
) -> Iterator[tuple[str, str]]:
    """Name and fault of every file in `digests` that is missing or differs.

    Files that still have their size and mtime of `stamps` are not read; all others are, in threads.
    """

    def fault(name: str) -> str | None:
        path = directory / name
        if not path.is_file():
            return "no such file"
        if stamps is not None and stamps.get(name) == stamp(path):
            return None
        expected = digests[name]
        found = file_checksum(path) if ":" in expected else file_digest(path)
        return f"other content ({found[:17]}.., written as {expected[:17]}..)" if found != expected else None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name, why in zip(digests, pool.map(fault, digests)):
            if why is not None:
                yield name, why
