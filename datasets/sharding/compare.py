"""Whether finished records hold what their source images say."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Optional

from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.base.parallel import in_processes
from datasets.images.inspect import stored_bytes
from datasets.manifest.faults import fault_names
from datasets.records.check import check_files
from datasets.records.index import REDO, Index, Records, Shard
from datasets.records.rows import SOURCES_SCHEMA, read_sources, source_rows
from datasets.sharding.plan import planned_shards
from datasets.sharding.writer import read_source


def check_records(directory: PathLike, *, root: PathLike | None = None, workers: int | None = None) -> Records:
    """Check the digest of every file and, with `root`, compare every record with its source image, bit for bit.

    With `root`, every image that the manifest keeps must be in the shard that the plan gives it, once. A record of a
    converted or resized image must equal a new conversion of its source.

    Args:
        directory: the records.
        root: the folder of the source images.
        workers: processes that compare; default: one per core.

    Raises:
        InputError: a file or record is missing or differs.
    """
    directory = Path(directory)
    index = check_files(directory, full=True)
    if root is not None:
        _check_shards(directory, index)
        compare = partial(_compare, directory, Path(root), index.options.short_side)
        for _ in in_processes(compare, index.all_shards(), workers=workers):
            pass
    return index.result(directory, reused=True)


def _check_shards(directory: Path, index: Index) -> None:
    """Compare the list of shards, and each one's table of sources, with the plan of the same manifest."""
    names = [name for name in SOURCES_SCHEMA.names if name != "converted"]
    for split, part in index.splits.items():
        files = {shard.file for shard in part.shards}
        for planned, rows in planned_shards(directory, split, index.options):
            if planned.file not in files or read_sources(directory / planned.file).select(names) != rows.select(names):
                expected = "the images that the manifest gives it"
                raise InputError(directory / planned.file, expected=expected, found="others", todo=REDO)
            files.remove(planned.file)
        if files:
            raise InputError(directory / min(files), expected="no such shard", found="one", todo=REDO)


def _compare(directory: Path, root: Path, short_side: Optional[int], shard: Shard) -> None:
    """Compare the records of a shard with their sources."""
    from mindspore.mindrecord import FileReader  # slow to import, and needed here only

    file, count = directory / shard.file, 0
    with closing(FileReader(str(file), num_consumer=1)) as reader:
        sources = source_rows(read_sources(file))
        for record in reader.get_next():
            row = next(sources, None)
            if row is not None:
                where = f"{file}: record of {row.path}"
                if record["label"] != row.label:
                    raise InputError(where, expected=f"label {row.label}", found=str(record["label"]), todo=REDO)
                image = read_source(f"{root}/{row.path}", row.bytes, row.checksum)
                if row.converted:
                    image = stored_bytes(image, short_side=short_side, convert=fault_names(row.convert))
                if record["image"] != image:
                    found = f"{len(record['image'])} other bytes"
                    raise InputError(where, expected=f"{len(image)} bytes of its source", found=found, todo=REDO)
            count += 1
    if count != shard.images:
        raise InputError(file, expected=f"{shard.images} records", found=str(count), todo=REDO)
