"""Write shards: MindRecord files with their tables of sources, each whole or absent.

Importing MindSpore (3 s, on the first shard of a process) sets LD_LIBRARY_PATH, HCCL_CONNECT_TIMEOUT,
KMP_DUPLICATE_LIB_OK and PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION in os.environ and adds warning filters; it starts no
thread and takes no signal handler. The writer itself keeps no state beyond its call.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.base.digests import checksum, file_checksum
from datasets.base.errors import InputError, no_room, room_for
from datasets.base.files import write_json
from datasets.images.inspect import stored_bytes
from datasets.manifest.faults import fault_names
from datasets.records.index import DATABASE, SCHEMA, SOURCES, SOURCES_SCHEMA, Shard, Stamp, stamp
from datasets.records.plan import BATCH, BATCH_BYTES, PlannedShard, stored_as_is

SHARDS = "the shards"
ATTEMPTS, ENTRIES = "attempts", "entries"  # folders of a working directory
_WRITEBACK_BYTES = 1 << 24

logger = logging.getLogger(__name__)


class Group(NamedTuple):
    """Some shards for one process to write, one after the other."""

    work: Path
    rows: Path  # parquet; a row group for each shard
    root: Path
    short_side: Optional[int]
    shards: list[PlannedShard]

    @property
    def label(self) -> str:
        """A short name: its first shard, and how many more."""
        more = f" and {len(self.shards) - 1} more" if len(self.shards) > 1 else ""
        return Path(self.shards[0].file).stem + more


class Entry(NamedTuple):
    """A finished shard of a working directory."""

    shard: Shard
    stamps: dict[str, Stamp]


def write_group(group: Group) -> int:
    """Write the shards of a group that are not finished yet, and return their number.

    Raises:
        InputError: a source file is gone or changed since it was validated, or the disk is full.
    """
    missing = [planned for planned in group.shards if read_entry(group.work, planned) is None]
    for planned in missing:
        _write_shard(group, planned)
    return len(missing)


def read_entry(work: Path, planned: PlannedShard) -> Entry | None:
    """A shard that is finished in a working directory; none if it is not, or is another."""
    entry = load_entry(_entry_path(work, planned.file))
    if entry is None or entry.shard.key != planned.key:
        return None
    try:
        return entry if all(stamp(work / name) == known for name, known in entry.stamps.items()) else None
    except OSError:
        return None


def load_entry(path: Path) -> Entry | None:
    """What an entry file says; none if there is none."""
    try:
        content = json.loads(path.read_text())
        stamps = {name: (int(size), int(mtime)) for name, (size, mtime) in content["stamps"].items()}
        return Entry(Shard.model_validate(content["shard"]), stamps)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_entry(work: Path, shard: Shard) -> None:
    """Say that the files of a shard are in their places, whole."""
    stamps = {name: stamp(work / name) for name in shard.digests()}
    write_json(_entry_path(work, shard.file), {"shard": shard.model_dump(mode="json"), "stamps": stamps})


def read_source(path: str, size: int, expected: str) -> bytes:
    """The bytes of a source file, which must still be those that were validated.

    Raises:
        InputError: the file is gone or changed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            data = os.read(descriptor, size + 1)  # one call, unless the file grew or lies on an odd file system
            while len(data) < size and (more := os.read(descriptor, size + 1 - len(data))):
                data += more
        finally:
            os.close(descriptor)
        found = checksum(data).hex()
        if found == expected:
            return data
        fault = f"{len(data)} bytes with XXH3 {found[:12]}.." if len(data) <= size else f"more than {size} bytes"
    except OSError as error:
        fault = error.strerror or type(error).__name__
    validated = f"the validated file of {size} bytes with XXH3 {expected[:12]}.."
    raise InputError(path, expected=validated, found=fault, todo="run `mae data validate` again")


def _entry_path(work: Path, file: str) -> Path:
    return work / ENTRIES / f"{Path(file).name}.json"


def _write_shard(group: Group, planned: PlannedShard) -> None:
    """Write one shard in a directory of its own, then move its files to their places and say so."""
    attempt = group.work / ATTEMPTS / f"{Path(planned.file).stem}-{uuid.uuid4().hex[:8]}"
    try:
        with room_for(SHARDS, group.work):
            attempt.mkdir()
            rows = pq.ParquetFile(group.rows).read_row_group(planned.row_group)
            target = attempt / Path(planned.file).name
            converted = _write_records(target, rows, group, planned)
            table = rows.append_column("converted", pa.array(converted, pa.bool_())).select(SOURCES_SCHEMA.names)
            pq.write_table(table.cast(SOURCES_SCHEMA), f"{target}{SOURCES}", compression="zstd")
            digests = {suffix: _settle(Path(f"{target}{suffix}")) for suffix in ("", DATABASE, SOURCES)}
            for suffix in digests:
                os.replace(f"{target}{suffix}", group.work / f"{planned.file}{suffix}")
            shard = Shard(
                file=planned.file,
                images=planned.images,
                bytes=(group.work / planned.file).stat().st_size,
                key=planned.key,
                digest=digests[""],
                database_digest=digests[DATABASE],
                sources_digest=digests[SOURCES],
            )
            write_entry(group.work, shard)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def _settle(path: Path) -> str:
    """Make a file readable for other users' workers (MindRecord makes it 0600), put it on disk; its digest."""
    path.chmod(0o644)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(1) as pool:  # the disk works while the pages, still in memory, are hashed
            written = pool.submit(os.fsync, descriptor)
            digest = file_checksum(path)
            written.result()
        return digest
    finally:
        os.close(descriptor)


def _write_records(target: Path, rows: pa.Table, group: Group, planned: PlannedShard) -> list[bool]:
    """Write one MindRecord file with a record for each row, in their order; which of them were converted."""
    # slow to import, and not needed where records are reused
    from mindspore.mindrecord import FileWriter, MindRecordException

    converted: list[bool] = []
    try:
        writer = FileWriter(str(target), shard_num=1)
        writer.set_page_size(planned.page)
        writer.set_header_size(planned.header)
        writer.add_schema(SCHEMA, "images")
        writer.add_index(["label"])
        with _early_writeback(target) as write_back:
            for batch in _batches(rows, group.root, group.short_side, converted):
                count = len(batch)
                writer.write_raw_data(batch)
                if len(batch) != count:  # the writer removes what does not fit its schema, with a log line only
                    raise RuntimeError(f"{target}: MindRecord refused {count - len(batch)} of {count} records")
                write_back(sum(len(record["image"]) for record in batch))
            writer.commit()
    except (RuntimeError, MindRecordException) as error:
        _blame_the_disk(target, planned.page, str(error))
        raise
    return converted


@contextmanager
def _early_writeback(path: Path) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the number of bytes written: from time to time it has the disk take what is there.

    The disk then works while images are read and hashed, and little is left for the fsync at the end.
    """
    written = 0
    pending: Future[None] | None = None
    descriptor = -1

    def write_back(count: int) -> None:
        nonlocal written, pending, descriptor
        written += count
        if written >= _WRITEBACK_BYTES and (pending is None or pending.done()):
            if descriptor < 0:
                descriptor = os.open(path, os.O_RDONLY)
            if pending is not None:
                pending.result()  # a failed write is told once only
            written, pending = 0, pool.submit(os.fdatasync, descriptor)

    try:
        with ThreadPoolExecutor(1) as pool:
            yield write_back
            if pending is not None:
                pending.result()
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _batches(
    rows: pa.Table, root: Path, short_side: int | None, converted: list[bool]
) -> Iterator[list[dict[str, Any]]]:
    """Records of at most BATCH images and, but for the last image, BATCH_BYTES; appends to `converted` as it goes."""
    kept = stored_as_is(rows, short_side)
    batch: list[dict[str, Any]] = []
    size, base = 0, str(root)
    for start in range(0, len(rows), 1 << 14):
        part = rows.slice(start, 1 << 14)
        columns = [part.column(name).to_pylist() for name in ("path", "label", "bytes", "checksum", "convert")]
        for as_is, path, label, length, known, convert in zip(kept[start:].tolist(), *columns):
            data = read_source(f"{base}/{path}", length, known)
            image = data if as_is else stored_bytes(data, short_side=short_side, convert=fault_names(convert))
            converted.append(image is not data)
            batch.append({"image": image, "label": label})
            size += len(image)
            if len(batch) == BATCH or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _blame_the_disk(target: Path, page: int, message: str) -> None:
    """Raise InputError if the disk takes no more: MindRecord's own errors do not tell why a write failed."""
    if "No free disk" in message:
        raise no_room(SHARDS, target.parent, "no space left on device")
    with room_for(SHARDS, target.parent), open(target, "ab") as file:
        file.write(b"\0" * page)
        file.flush()
        os.fsync(file.fileno())
