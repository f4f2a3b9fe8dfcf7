"""Read what `datasets.shard` wrote: the index, and whether shards and records are still what was written."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Optional

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets.image import stored_bytes
from datasets.manifest import MANIFEST, USABLE, ManifestRow, read_manifest
from datasets.stage import InputError, PathLike, StageResult, file_digest, value_digest

INDEX = "index.json"
BATCH = 64  # records handled at a time; also how far reading threads run ahead
_REDO = "run `mae data shard` again"


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
    """One MindRecord file and the SQLite file beside it (`<file>.db`)."""

    file: str  # relative to the records directory
    images: int
    bytes: int
    digest: str
    database_digest: str


class Split(_Part):
    """The shards of train or val."""

    images: int
    shards: list[Shard]


class Options(_Part):
    """What the records depend on besides the manifest."""

    shard_mb: int = Field(gt=0)
    short_side: Optional[int] = Field(gt=0)
    seed: int


class Index(_Part):
    """index.json. The source of record `row` is row number `row` of manifest.parquet beside it, under `root`."""

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


def load_index(directory: PathLike) -> Index:
    """Read index.json of a records directory; the shards themselves are not looked at (see `check`).

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
    raise InputError(path, expected="the index of a records directory", found=found, todo=_REDO)


def check(directory: PathLike, *, root: PathLike | None = None) -> Records:
    """Verify every shard against index.json and, with `root`, every record against its source image, bit for bit.

    A record of a converted or resized image must equal the result of converting its source again.

    Raises:
        InputError: a file or record is missing or differs.
    """
    directory = Path(directory)
    index = load_index(directory)
    damaged = list(damaged_files(directory, index))
    if damaged:
        name, why = damaged[0]
        more = f" ({len(damaged)} files in all)" if len(damaged) > 1 else ""
        raise InputError(directory / name, expected="the file that was written", found=why + more, todo=_REDO)
    if root is not None:
        _check_records(directory, index, Path(root))
    return index.result(directory, reused=True)


def damaged_files(directory: Path, index: Index) -> Iterator[tuple[str, str]]:
    """Name and fault of every file that is missing or differs from the index. Reads all of them."""
    expected = {MANIFEST: index.manifest_digest}
    for shard in index.all_shards():
        expected.update({shard.file: shard.digest, f"{shard.file}.db": shard.database_digest})
    with ThreadPoolExecutor(_threads()) as pool:
        for name, digest in zip(expected, pool.map(lambda name: _digest(directory / name), expected)):
            if digest is None:
                yield name, "no such file"
            elif digest != expected[name]:
                yield name, f"other content (SHA-256 {digest[:12]}.., written as {expected[name][:12]}..)"


def read_source(root: Path, row: ManifestRow) -> bytes:
    """The bytes of a source file, which must still be those that were validated.

    Raises:
        InputError: the file is gone or changed.
    """
    path = root / row.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _changed(path, row, error.strerror or type(error).__name__) from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != row.digest:
        raise _changed(path, row, f"{len(data)} bytes with SHA-256 {digest[:12]}..")
    return data


def _changed(path: Path, row: ManifestRow, found: str) -> InputError:
    expected = f"the validated file of {row.bytes} bytes with SHA-256 {str(row.digest)[:12]}.."
    return InputError(path, expected=expected, found=found, todo="run `mae data validate` again")


def _digest(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _check_records(directory: Path, index: Index, root: Path) -> None:
    rows = read_manifest(directory / MANIFEST)
    for split, part in index.splits.items():
        seen: set[int] = set()
        for shard in part.shards:
            for record in _compared(directory / shard.file, rows, root, index.options.short_side):
                seen.add(record["row"])
        missing = {n for n, row in enumerate(rows) if row.split == split and row.status in USABLE} ^ seen
        if missing or len(seen) != part.images:
            found = (
                f"{len(seen)} records; first to differ: {rows[min(missing)].path}"
                if missing
                else f"{len(seen)} records"
            )
            raise InputError(directory / split, expected=f"each of {part.images} images once", found=found, todo=_REDO)


def _compared(file: Path, rows: list[ManifestRow], root: Path, short_side: int | None) -> Iterator[dict[str, Any]]:
    """The records of a shard, each after its comparison with its source."""
    from mindspore.mindrecord import FileReader  # slow to import, and needed here only

    def expected(record: dict[str, Any]) -> tuple[int, bytes]:
        row = rows[record["row"]]
        return row.label, stored_bytes(read_source(root, row), short_side=short_side)

    with closing(FileReader(str(file))) as reader, ThreadPoolExecutor(_threads()) as pool:
        records = reader.get_next()
        while batch := list(itertools.islice(records, BATCH)):
            for record, (label, image) in zip(batch, pool.map(expected, batch)):
                where = f"{file}: record of {rows[record['row']].path}"
                if record["label"] != label:
                    raise InputError(where, expected=f"label {label}", found=str(record["label"]), todo=_REDO)
                if record["image"] != image:
                    found = f"{len(record['image'])} other bytes"
                    raise InputError(where, expected=f"{len(image)} bytes of its source", found=found, todo=_REDO)
                yield record
