"""Write a validated data set as MindRecord shards, which ranks read during training.

A record is `image` (the encoded file, bytes) and `label` (int32). Each shard has a table of its records' sources. Each
shard is a MindRecord file of its own, not part of a set, so any subset of them can be opened.

`write_records` does it all. Callers that spread the work over machines make three steps: `ShardPlan.make`, `write` of
each of its groups, `conclude`, all within `sole_writer`. Shards are written to `<out>.partial-<digest>/records`. If a
call is interrupted, the next one with the same input writes only the groups that are not finished there.
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from datasets.base.digests import value_digest
from datasets.base.errors import InputError, no_room, room_for
from datasets.base.files import PathLike, fsync, refuse_foreign, replace_directory, write_json
from datasets.base.lock import exclusive
from datasets.base.parallel import in_processes
from datasets.manifest.rows import MANIFEST
from datasets.records.check import check_files, write_stamps
from datasets.records.index import INDEX, SCHEMA, Index, RecordOptions, Records, Split, load_index
from datasets.sharding.plan import VERSION, planned_shards
from datasets.sharding.writer import ATTEMPTS, ENTRIES, RECORDS, SHARDS, ShardGroup, rows_file
from datasets.validation.validate import Validation, load_validation

GROUPS = 64  # tasks per split at most; more are a burden to Prefect's database

logger = logging.getLogger(__name__)


class ShardPlan(BaseModel):
    """What is to be written, and where."""

    model_config = ConfigDict(frozen=True)

    validation: Path
    options: RecordOptions
    out: Path
    work: Path
    groups: list[ShardGroup] = []
    done: Optional[Records] = None  # the result, if the output was finished before

    @classmethod
    def make(
        cls,
        validation_directory: PathLike,
        out: PathLike,
        *,
        shard_mb: int,
        short_side: int | None,
        seed: int,
        full: bool = False,
    ) -> ShardPlan:
        """Divide the shards into groups, and prepare the working directory; only within `sole_writer`.

        Raises:
            InputError: as `write_records`.
        """
        out = Path(os.path.abspath(out))
        source = load_validation(validation_directory)
        options = _options(shard_mb, short_side, seed, source.policy)
        request = _request(source, options)
        work = out.with_name(f"{out.name}.partial-{request}")
        done = _finished(out, request, full=full)
        groups: list[ShardGroup] = []
        for other in _working_directories(out):
            if done is not None or other != work:
                shutil.rmtree(other, ignore_errors=True)
        if done is None:
            with room_for(SHARDS, out.parent):
                groups = _prepare(source, options, work)
        return cls(validation=source.directory, options=options, out=out, work=work, groups=groups, done=done)

    def conclude(self) -> Records:
        """Add the index to the shards, which are all written, and rename their directory to the output."""
        if self.done is not None:
            return self.done
        source, records = load_validation(self.validation), self.work / RECORDS
        shards = sorted((shard for group in self.groups for shard in group.finished()), key=lambda shard: shard.file)
        if len(shards) != sum(len(group.shards) for group in self.groups):
            raise RuntimeError(f"{self.work}: some shards were not written")
        splits = {}
        for split in ("train", "val"):
            mine = [shard for shard in shards if shard.file.startswith(f"{split}/")]
            splits[split] = Split(images=sum(shard.images for shard in mine), shards=mine)
        index = Index(
            name=source.name,
            classes=source.classes,
            splits=splits,
            record_schema=SCHEMA,
            root=source.root,
            manifest_digest=source.manifest_digest,
            options=self.options,
            version=VERSION,
        )
        with room_for(SHARDS, self.work):
            shutil.copyfile(source.directory / MANIFEST, records / MANIFEST)
            write_stamps(records, index.digests())
            write_json(records / INDEX, index.model_dump(mode="json", by_alias=True))
        for path in (records / MANIFEST, records / "train", records / "val", records):
            fsync(path)
        replace_directory(records, self.out)
        shutil.rmtree(self.work)
        result = index.result(self.out, reused=False)
        logger.info("%s: %d + %d records in %d shards", self.out, result.train, result.val, result.shards)
        return result


def records_directory(
    workspace: PathLike, validation_directory: PathLike, *, shard_mb: int, short_side: int | None, seed: int
) -> Path:
    """Return where the pipeline shards a validated data set; the name has a digest of the manifest and the options."""
    source = load_validation(validation_directory)
    options = _options(shard_mb, short_side, seed, source.policy)
    return Path(workspace) / "records" / f"{source.name}-{_request(source, options)}"


def write_records(
    validation_directory: PathLike,
    out: PathLike,
    *,
    shard_mb: int = 1024,
    short_side: int | None = None,
    seed: int = 0,
    full: bool = False,
    workers: int | None = None,
) -> Records:
    """Write the kept rows of a manifest to out/train/*.mindrecord and out/val/*.mindrecord, with index.json.

    Each split is shuffled as a whole by `seed` and cut into shards (see `datasets.sharding.plan`). The result is the
    same, bit for bit, for any number of workers. A finished output of the same manifest and options is checked and
    kept. If a file of it is missing or damaged, all of it is written again.

    Args:
        validation_directory: what `mae data validate` wrote.
        out: the records directory.
        shard_mb: million bytes of source images in a shard, about.
        short_side: store larger images with this shorter side, in pixels.
        seed: of the shuffle.
        full: check the digests of all files of a finished output, also of those that have the size and mtime of when
            they were written.
        workers: processes, each of which writes one shard at a time; default: one per core.

    Raises:
        InputError: the validation is missing or damaged, a source file is gone or changed since, an option is out of
            range, `out` has files of somebody else, or the disk is full.
    """
    with sole_writer(out):
        plan = ShardPlan.make(validation_directory, out, shard_mb=shard_mb, short_side=short_side, seed=seed, full=full)
        for _ in in_processes(ShardGroup.write, plan.groups, workers=workers):
            pass
        return plan.conclude()


@contextmanager
def sole_writer(out: PathLike) -> Iterator[None]:
    """Lock an output: a second caller waits, and then finds what the first one has written.

    On leaving, remove the working directories of `out` that have no finished group.
    """
    out = Path(os.path.abspath(out))
    refuse_foreign(out, INDEX)
    lock = out.with_name(f"{out.name}.lock")
    with exclusive(lock):
        try:
            yield
        finally:
            for work in _working_directories(out):
                if not any(work.glob(f"{ENTRIES}/*.json")):
                    shutil.rmtree(work, ignore_errors=True)
            lock.rmdir()


def _working_directories(out: Path) -> Iterator[Path]:
    return out.parent.glob(f"{glob.escape(out.name)}.partial-*")


def _options(shard_mb: int, short_side: int | None, seed: int, policy: dict[str, str]) -> RecordOptions:
    for name, value in (("shard_mb", shard_mb), ("short_side", short_side)):
        if value is not None and value < 1:
            raise InputError(name, expected="at least 1", found=str(value), todo="correct the option")
    convert = sorted(fault for fault, action in policy.items() if action == "convert")
    return RecordOptions(shard_mb=shard_mb, short_side=short_side, seed=seed, convert=convert)


def _request(source: Validation | Index, options: RecordOptions, version: int = VERSION) -> str:
    return value_digest([source.manifest_digest, options.model_dump(), version])


def _finished(out: Path, request: str, *, full: bool) -> Records | None:
    """Return the result of an output that an earlier call has finished for the same request, if it is undamaged."""
    if not (out / INDEX).is_file():
        return None
    try:
        index = load_index(out)
        if _request(index, index.options, index.version) != request:
            logger.info("%s: made from another manifest or with other options, so it is written again", out)
            return None
        check_files(out, full=full)
    except InputError as error:
        logger.warning("%s: damaged, so it is written again: %s", out, error)
        return None
    logger.info("%s: reusing the records of %s", out, index.root)
    return index.result(out, reused=True)


def _prepare(source: Validation, options: RecordOptions, work: Path) -> list[ShardGroup]:
    """Write the rows of all shards to the working directory and return the groups of shards, also the finished ones."""
    shutil.rmtree(work / ATTEMPTS, ignore_errors=True)  # of an interrupted call
    for folder in (f"{RECORDS}/train", f"{RECORDS}/val", ATTEMPTS, ENTRIES):
        (work / folder).mkdir(parents=True, exist_ok=True)
    for path in (work / RECORDS).iterdir():
        if path.is_file():  # of a call that was killed while it wrote the index
            path.unlink()
    groups: list[ShardGroup] = []
    sizes: dict[str, int] = {}  # bytes of the images of each shard
    for split in ("train", "val"):
        shards = []
        for planned, rows in planned_shards(source.directory, split, options):
            pq.write_table(rows, rows_file(work, planned))
            shards.append(planned)
            sizes[planned.file] = 0 if options.short_side else sum(rows.column("bytes").to_numpy())
        count = min(len(shards), GROUPS)
        groups += [ShardGroup(work, source.root, options.short_side, shards[n::count]) for n in range(count)]
    missing = [planned for group in groups if not group.finished() for planned in group.shards]
    room, free = sum(sizes[planned.file] for planned in missing), shutil.disk_usage(work).free
    if room > free:
        raise no_room(SHARDS, work, f"no space left on the device for {room / 1e6:,.0f} MB")
    logger.info("%s: %d shards to write, %d finished before", work, len(missing), len(sizes) - len(missing))
    return groups
