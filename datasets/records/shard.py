"""Write a validated data set as MindRecord shards: what a rank reads during training.

A record is `image` (the encoded file, bytes) and `label` (int32); beside each shard lies the table of its records'
sources. Each shard is a MindRecord file of its own, not part of a set, so that any subset opens.

The work has three steps, for callers that spread it over machines: `plan`, `writer.write_group` for each
group that the plan names, `conclude`. It goes on in `<out>.partial-<digest>`, which a repeated call continues.
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
from datasets.base.files import PathLike, fsync, refuse_foreign, write_json
from datasets.base.lock import exclusive
from datasets.base.parallel import in_processes
from datasets.manifest.rows import MANIFEST
from datasets.records.index import INDEX, SCHEMA, STAMPS, Index, Options, Records, Split, load_index, stamp
from datasets.records.plan import VERSION, PlannedShard, planned_shards
from datasets.records.reuse import damage, finished_shards, lock_of, remove_partial, take
from datasets.records.writer import ATTEMPTS, ENTRIES, SHARDS, Group, read_entry, write_group
from datasets.validation.validate import Validation, load_validation

GROUPS = 64  # at most; more tasks than that are a burden to Prefect's database

logger = logging.getLogger(__name__)


class Plan(BaseModel):
    """What is to be written where. `done` is the result where nothing is to be done at all."""

    model_config = ConfigDict(frozen=True)

    validation: Path
    options: Options
    out: Path
    work: Path
    shards: dict[str, list[PlannedShard]]  # of each split, all of them
    groups: list[Group]  # those to write
    done: Optional[Records] = None


def records_directory(
    workspace: PathLike, validation_directory: PathLike, *, shard_mb: int, short_side: int | None, seed: int
) -> Path:
    """Where the pipeline shards a validated data set: named by its manifest and by the options."""
    source = load_validation(validation_directory)
    options = _options(shard_mb, short_side, seed, source.policy)
    return Path(workspace) / "records" / f"{source.name}-{_request(source, options)}"


def shard(
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

    Each split is shuffled as a whole by `seed` and cut into shards of about `shard_mb` million bytes of source images
    (see `datasets.records.plan`). `stored_bytes` says what is stored of an image. One process per core
    writes, or `workers`, each a shard at a time. Shards that are there and whole are not written again: those of `out`,
    of a killed call, and of other records beside `out` that hold the same images at the same places. A file is taken
    for whole if its size and mtime are those it was written with, else, or with `full`, if its digest is.

    Raises:
        InputError: the validation is missing or damaged, a source file is gone or changed since it, an option is out
            of range, `out` holds something else, or the disk is full.
    """
    with sole_writer(out):
        found = plan(validation_directory, out, shard_mb=shard_mb, short_side=short_side, seed=seed, full=full)
        for _ in in_processes(write_group, found.groups, workers=workers):
            pass
        return conclude(found)


@contextmanager
def sole_writer(out: PathLike) -> Iterator[None]:
    """Hold an output against other calls; a second one waits, and then finds what the first has written."""
    out = Path(os.path.abspath(out))
    refuse_foreign(out, INDEX)
    lock = lock_of(out)
    with exclusive(lock):
        try:
            yield
        finally:
            _tidy(out)
            lock.rmdir()


def plan(
    validation_directory: PathLike,
    out: PathLike,
    *,
    shard_mb: int,
    short_side: int | None,
    seed: int,
    full: bool = False,
) -> Plan:
    """Find out which shards are to be written, and put those that are finished into the working directory.

    Raises:
        InputError: as `shard`.
    """
    out = Path(os.path.abspath(out))
    source = load_validation(validation_directory)
    options = _options(shard_mb, short_side, seed, source.policy)
    refuse_foreign(out, INDEX)
    work = out.with_name(f"{out.name}.partial-{_request(source, options)}")
    faults = damage(out, full=full)
    for name, why in faults.items():
        logger.warning("%s: writing again what is damaged: %s: %s", out, name, why)
    done = None if faults else _reusable(out, source, options)
    if done is not None:
        logger.info("%s: reusing the records of %s", out, source.root)
        return Plan(validation=source.directory, options=options, out=out, work=work, shards={}, groups=[], done=done)
    with room_for(SHARDS, out.parent):
        shards, groups = _prepare(source, options, out, work, full)
    return Plan(validation=source.directory, options=options, out=out, work=work, shards=shards, groups=groups)


def conclude(found: Plan) -> Records:
    """Put the shards of a plan, which are all written, in the place of its output, with their index."""
    if found.done is not None:
        return found.done
    source, work, out = load_validation(found.validation), found.work, found.out
    splits, stamps = {}, {}
    for split, planned in found.shards.items():
        entries = [read_entry(work, part) for part in planned]
        missing = [part.file for part, entry in zip(planned, entries) if entry is None]
        if missing:
            raise RuntimeError(f"{work}: {missing[0]} was not written, or changed since")
        shards = [entry.shard for entry in entries if entry is not None]
        splits[split] = Split(images=sum(part.images for part in shards), shards=shards)
        stamps.update({name: known for entry in entries if entry is not None for name, known in entry.stamps.items()})
    index = Index(
        name=source.name,
        classes=source.classes,
        splits=splits,
        record_schema=SCHEMA,
        root=source.root,
        manifest_digest=source.manifest_digest,
        options=found.options,
        version=VERSION,
    )
    with room_for(SHARDS, work):
        shutil.copyfile(source.directory / MANIFEST, work / MANIFEST)
        fsync(work / MANIFEST)
        stamps[MANIFEST] = stamp(work / MANIFEST)
        write_json(work / STAMPS, stamps)
        write_json(work / INDEX, index.model_dump(mode="json", by_alias=True))
    _put_in_place(work, out)
    remove_partial(out, source.name)
    result = index.result(out, reused=False)
    logger.info("%s: %d + %d records in %d shards", out, result.train, result.val, result.shards)
    return result


def _options(shard_mb: int, short_side: int | None, seed: int, policy: dict[str, str]) -> Options:
    for name, value in (("shard_mb", shard_mb), ("short_side", short_side)):
        if value is not None and value < 1:
            raise InputError(name, expected="at least 1", found=str(value), todo="correct the option")
    convert = sorted(fault for fault, action in policy.items() if action == "convert")
    return Options(shard_mb=shard_mb, short_side=short_side, seed=seed, convert=convert)


def _request(source: Validation, options: Options) -> str:
    return value_digest([source.manifest_digest, options.model_dump(), VERSION])


def _reusable(out: Path, source: Validation, options: Options) -> Records | None:
    """The result of an undamaged output, if it is that of the same manifest and options."""
    if not (out / INDEX).is_file():
        return None
    index = load_index(out)
    if (index.manifest_digest, index.options, index.version) != (source.manifest_digest, options, VERSION):
        logger.info("%s: made from another manifest or with other options; keeping the shards that are the same", out)
        return None
    _remove_tools(out)
    return index.result(out, reused=True)


def _prepare(
    source: Validation, options: Options, out: Path, work: Path, full: bool
) -> tuple[dict[str, list[PlannedShard]], list[Group]]:
    """Fill the working directory with what is finished, and write down the rows of what is not."""
    shutil.rmtree(work / ATTEMPTS, ignore_errors=True)  # of a killed call
    for folder in ("train", "val", ATTEMPTS, ENTRIES):
        (work / folder).mkdir(parents=True, exist_ok=True)
    finished = finished_shards(out)
    shards: dict[str, list[PlannedShard]] = {}
    missing: list[Group] = []
    room = 0
    for split in ("train", "val"):
        shards[split], rows_file, writer = [], work / ATTEMPTS / f"{split}.parquet", None
        for planned, rows in planned_shards(source.directory, split, options):
            if not take(planned, finished, work, full=full):
                writer = writer or pq.ParquetWriter(rows_file, rows.schema)
                planned = planned._replace(row_group=sum(group.rows == rows_file for group in missing))
                writer.write_table(rows, row_group_size=len(rows))
                missing.append(Group(work, rows_file, source.root, options.short_side, [planned]))
                room += 0 if options.short_side else sum(rows.column("bytes").to_numpy())
            shards[split].append(planned)
        if writer is not None:
            writer.close()
    free = shutil.disk_usage(work).free
    if room > free:
        raise no_room(SHARDS, work, f"no space left on the device for {room / 1e6:,.0f} MB")
    logger.info("%s: %d shards to write, %d kept", out, len(missing), sum(map(len, shards.values())) - len(missing))
    return shards, _grouped(missing)


def _grouped(single: list[Group]) -> list[Group]:
    """At most GROUPS groups per split of what were groups of one shard."""
    groups = []
    for rows_file in dict.fromkeys(group.rows for group in single):
        of_file = [group for group in single if group.rows == rows_file]
        count = min(len(of_file), GROUPS * len(of_file) // len(single) or 1)
        for start in range(count):
            shards = [part for group in of_file[start::count] for part in group.shards]
            groups.append(of_file[0]._replace(shards=shards))
    return groups


def _put_in_place(work: Path, out: Path) -> None:
    for folder in (work / "train", work / "val", work):
        fsync(folder)
    if out.exists():
        replaced = out.with_name(f"{out.name}.partial-replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
    work.rename(out)
    fsync(out.parent)
    _remove_tools(out)


def _tidy(out: Path) -> None:
    """Keep of a failed call what a repeated one can use: finished shards."""
    for work in out.parent.glob(f"{glob.escape(out.name)}.partial-*"):
        shutil.rmtree(work / ATTEMPTS, ignore_errors=True)
        if not any(work.glob(f"{ENTRIES}/*.json")):
            shutil.rmtree(work, ignore_errors=True)


def _remove_tools(out: Path) -> None:
    """Remove what only a working directory needs; a call that was killed between two lines may have left it."""
    for folder in (ATTEMPTS, ENTRIES):
        shutil.rmtree(out / folder, ignore_errors=True)
