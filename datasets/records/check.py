"""Whether finished records are still what was written, and whether that is what their sources say."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Optional

from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.base.parallel import in_processes
from datasets.images.inspect import stored_bytes
from datasets.manifest.faults import fault_names
from datasets.records.index import (
    REDO,
    Index,
    Records,
    SourceRow,
    damaged_files,
    load_index,
    read_sources,
    read_stamps,
    source_rows,
)
from datasets.records.plan import content_key, planned_shards
from datasets.records.writer import read_source


class _Comparison(NamedTuple):
    """A shard to compare with its sources."""

    file: Path
    images: int
    root: Path
    short_side: Optional[int]


def check(directory: PathLike, *, root: PathLike | None = None, workers: int | None = None) -> Records:
    """Verify the digest of every file and, with `root`, every record against its source image, bit for bit.

    A record of a converted or resized image must equal the result of converting its source again. With `root`, the
    shards must also be those that the manifest gives, so that no image is missing and none is there twice.

    Raises:
        InputError: a file or record is missing or differs.
    """
    directory = Path(directory)
    index = check_files(directory, full=True)
    if root is not None:
        _check_shards(directory, index)
        side = index.options.short_side
        shards = [_Comparison(directory / s.file, s.images, Path(root), side) for s in index.all_shards()]
        for _ in in_processes(_compare, shards, workers=workers):
            pass
    return index.result(directory, reused=True)


def check_files(directory: Path, *, full: bool) -> Index:
    """Verify the digest of every file; without `full` those that still have their size and mtime are not read.

    Raises:
        InputError: a file is missing or differs.
    """
    index = load_index(directory)
    damaged = list(damaged_files(directory, index.digests(), None if full else read_stamps(directory)))
    if damaged:
        name, why = damaged[0]
        more = f" ({len(damaged)} files in all)" if len(damaged) > 1 else ""
        todo = f"{REDO}, with --full" if full else REDO
        raise InputError(directory / name, expected="the file that was written", found=why + more, todo=todo)
    return index


def _check_shards(directory: Path, index: Index) -> None:
    """The shards must be those of the manifest, and their tables must name those images."""
    for split, part in index.splits.items():
        expected = {planned.file: planned for planned, _ in planned_shards(directory, split, index.options)}
        files = {shard.file for shard in part.shards}
        wrong = sorted(
            file
            for file in expected.keys() | files
            if file not in expected
            or file not in files
            or expected[file].key != content_key(read_sources(directory / file), expected[file], index.options)
        )
        if wrong:
            images = "the images that the manifest gives it" if wrong[0] in expected else "no such shard"
            raise InputError(directory / wrong[0], expected=images, found="others", todo=REDO)


def _compare(shard: _Comparison) -> int:
    """Compare each record of a shard with its source; their number."""
    from mindspore.mindrecord import FileReader  # slow to import, and needed here only

    count = 0
    with closing(FileReader(str(shard.file), num_consumer=1)) as reader:
        sources = source_rows(read_sources(shard.file))
        for record in reader.get_next():
            row = next(sources, None)
            if row is not None:
                _compare_record(shard, record, row)
            count += 1
    if count != shard.images:
        raise InputError(shard.file, expected=f"{shard.images} records", found=str(count), todo=REDO)
    return count


def _compare_record(shard: _Comparison, record: dict[str, Any], row: SourceRow) -> None:
    where = f"{shard.file}: record of {row.path}"
    if record["label"] != row.label:
        raise InputError(where, expected=f"label {row.label}", found=str(record["label"]), todo=REDO)
    image = read_source(f"{shard.root}/{row.path}", row.bytes, row.checksum)
    if row.converted:
        image = stored_bytes(image, short_side=shard.short_side, convert=fault_names(row.convert))
    if record["image"] != image:
        found = f"{len(record['image'])} other bytes"
        raise InputError(where, expected=f"{len(image)} bytes of its source", found=found, todo=REDO)
