"""Write single shards: a MindRecord file with its table of sources, whole or not at all.

Importing MindSpore (3 s, at the first shard of a process) sets LD_LIBRARY_PATH, HCCL_CONNECT_TIMEOUT,
KMP_DUPLICATE_LIB_OK and PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION in os.environ and adds warning filters. It starts no
thread and takes no signal handler.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.base.digests import checksum, file_checksum
from datasets.base.errors import InputError, no_room, room_for
from datasets.base.files import write_json
from datasets.images.inspect import stored_bytes
from datasets.manifest.faults import fault_names
from datasets.records.index import DATABASE, SCHEMA, SOURCES, Shard
from datasets.records.rows import SOURCES_SCHEMA
from datasets.sharding.plan import BATCH, BATCH_BYTES, PlannedShard, stored_as_is

SHARDS = "the shards"
# Folders of a working directory:
RECORDS = "records"  # what becomes the output
ENTRIES = "entries"  # a JSON file for each finished group, with its shards
ATTEMPTS = "attempts"  # the rows of all shards, and shards that are being written
_WRITEBACK_BYTES = 1 << 24
_SLICE = 1 << 14  # rows that are Python objects at a time


class ShardGroup(NamedTuple):
    """Some shards for one process to write, one after the other."""

    work: Path
    root: Path  # of the source images
    short_side: Optional[int]
    shards: list[PlannedShard]

    @property
    def label(self) -> str:
        """A short name: the first shard, and how many more."""
        more = f" and {len(self.shards) - 1} more" if len(self.shards) > 1 else ""
        return Path(self.shards[0].file).stem + more

    def finished(self) -> list[Shard]:
        """Return the shards if the group is finished, else nothing."""
        try:
            shards = [Shard.model_validate(shard) for shard in json.loads(self._entry.read_text())]
        except (OSError, ValueError):
            return []
        files = [self.work / RECORDS / name for shard in shards for name in shard.digests()]
        return shards if all(file.is_file() for file in files) else []

    def write(self) -> int:
        """Write the shards, unless the group is finished, and return their number.

        Raises:
            InputError: a source file is gone or changed since it was validated, or the disk is full.
        """
        if self.finished():
            return 0
        shards = [_write_shard(self, planned) for planned in self.shards]
        with room_for(SHARDS, self.work):
            write_json(self._entry, [shard.model_dump(mode="json") for shard in shards])
        return len(shards)

    @property
    def _entry(self) -> Path:
        return self.work / ENTRIES / f"{Path(self.shards[0].file).name}.json"


def rows_file(work: Path, planned: PlannedShard) -> Path:
    """Return the path of the manifest's rows of a shard."""
    return work / ATTEMPTS / f"{Path(planned.file).stem}.parquet"


def read_source(path: str, size: int, expected: str) -> bytes:
    """Return the content of a source file, after checking that it is what was validated.

    Args:
        path: of the file.
        size: in bytes, when it was validated.
        expected: its XXH3-128 in hex, when it was validated.

    Raises:
        InputError: the file is gone or changed.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(size + 1)
        found = checksum(data).hex()
        if found == expected:
            return data
        fault = f"{len(data)} bytes with XXH3 {found[:12]}.." if len(data) <= size else f"more than {size} bytes"
    except OSError as error:
        fault = error.strerror or type(error).__name__
    validated = f"the validated file of {size} bytes with XXH3 {expected[:12]}.."
    raise InputError(path, expected=validated, found=fault, todo="run `mae data validate` again")


def _write_shard(group: ShardGroup, planned: PlannedShard) -> Shard:
    """Write a shard's files in a new folder and move them to their places.

    Two processes may write the same shard: a worker can outlive a killed call for a moment. Their files are equal.
    """
    attempt = group.work / ATTEMPTS / f"{Path(planned.file).stem}-{uuid.uuid4().hex[:8]}"
    try:
        with room_for(SHARDS, group.work):
            attempt.mkdir()
            rows = pq.read_table(rows_file(group.work, planned))
            target = attempt / Path(planned.file).name
            converted = _write_records(target, rows, group, planned)
            table = rows.append_column("converted", pa.array(converted, pa.bool_())).select(SOURCES_SCHEMA.names)
            pq.write_table(table.cast(SOURCES_SCHEMA), f"{target}{SOURCES}", compression="zstd")
            digests = {suffix: _flush(Path(f"{target}{suffix}")) for suffix in ("", DATABASE, SOURCES)}
            size = target.stat().st_size
            for suffix in digests:
                os.replace(f"{target}{suffix}", group.work / RECORDS / f"{planned.file}{suffix}")
            return Shard(
                file=planned.file,
                images=planned.images,
                bytes=size,
                digest=digests[""],
                database_digest=digests[DATABASE],
                sources_digest=digests[SOURCES],
            )
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def _flush(path: Path) -> str:
    """Make a file readable for other users (MindRecord creates it with mode 0600), fsync it, and return its digest."""
    path.chmod(0o644)
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        written = pool.submit(os.fsync, file.fileno())  # while the digest is computed from the pages in memory
        digest = file_checksum(path)
        written.result()
        return digest


def _write_records(target: Path, rows: pa.Table, group: ShardGroup, planned: PlannedShard) -> list[bool]:
    """Write a MindRecord file with one record for each row, in their order; return which of them were converted."""
    # slow to import, and not needed where records are reused
    from mindspore.mindrecord import FileWriter, MindRecordException

    converted: list[bool] = []
    try:
        writer = FileWriter(str(target), shard_num=1)
        writer.set_page_size(planned.page)
        writer.set_header_size(planned.header)
        writer.add_schema(SCHEMA, "images")
        writer.add_index(["label"])
        started = 0
        for batch in _batches(rows, group, converted):
            count = len(batch)
            writer.write_raw_data(batch)
            if len(batch) != count:  # the writer drops records that do not fit its schema, and only logs it
                raise RuntimeError(f"{target}: MindRecord refused {count - len(batch)} of {count} records")
            started = _start_writeback(target, started)
        writer.commit()
    except (RuntimeError, MindRecordException) as error:
        _blame_the_disk(target, planned.page, str(error))
        raise
    return converted


def _start_writeback(path: Path, start: int) -> int:
    """Let the disk write a growing file from byte `start` on, while more is read and hashed; return the new start.

    Without it all of a shard would wait for the fsync at its end. On Linux, POSIX_FADV_DONTNEED starts the writing of
    dirty pages and returns at once. The pages stay in memory, because they are still dirty.
    """
    size = path.stat().st_size if path.exists() else 0
    if size - start < _WRITEBACK_BYTES:
        return start
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), start, size - start, os.POSIX_FADV_DONTNEED)
    return size


def _batches(rows: pa.Table, group: ShardGroup, converted: list[bool]) -> Iterator[list[dict[str, Any]]]:
    """Yield batches of records. A batch ends when it has BATCH records or at least BATCH_BYTES bytes of images.

    Appends to `converted` whether each record's bytes differ from its source's.
    """
    as_is = stored_as_is(rows, group.short_side).tolist()
    batch: list[dict[str, Any]] = []
    size = 0
    for start in range(0, len(rows), _SLICE):
        part = rows.slice(start, _SLICE)
        columns = [part.column(name).to_pylist() for name in ("path", "label", "bytes", "checksum", "convert")]
        for unchanged, path, label, length, known, convert in zip(as_is[start:], *columns):
            data = read_source(f"{group.root}/{path}", length, known)
            image = data if unchanged else stored_bytes(data, short_side=group.short_side, convert=fault_names(convert))
            converted.append(image is not data)
            batch.append({"image": image, "label": label})
            size += len(image)
            if len(batch) == BATCH or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _blame_the_disk(target: Path, page: int, message: str) -> None:
    """Raise InputError if the disk takes no more; MindRecord's own errors do not say why a write failed."""
    if "No free disk" in message:
        raise no_room(SHARDS, target.parent, "no space left on device")
    with room_for(SHARDS, target.parent), open(target, "ab") as file:
        file.write(b"\0" * page)
        file.flush()
        os.fsync(file.fileno())
