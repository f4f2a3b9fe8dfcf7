"""Finished shards that need no writing: of the output itself, of killed calls, of other records beside the output."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets.base.errors import InputError
from datasets.base.lock import is_held
from datasets.records.index import INDEX, damaged_files, load_index, read_stamps
from datasets.records.plan import PlannedShard
from datasets.records.writer import ENTRIES, Entry, load_entry, write_entry

Finished = dict[str, list[tuple[Path, Entry]]]  # by key: where the shard is, and what is known of it


def lock_of(out: Path) -> Path:
    """The directory that who writes `out` holds."""
    return out.with_name(f"{out.name}.lock")


def damage(out: Path, *, full: bool) -> dict[str, str]:
    """What is wrong with finished records, by file; empty if nothing is, or nothing is there."""
    if not (out / INDEX).exists():
        return {}
    try:
        index = load_index(out)
    except InputError as error:
        return {INDEX: str(error)}
    return dict(damaged_files(out, index.digests(), None if full else read_stamps(out)))


def finished_shards(out: Path) -> Finished:
    """Every shard that calls have finished in the folder of `out`; those of `out` first."""
    found: Finished = {}
    with os.scandir(out.parent) as entries:
        directories = [Path(entry) for entry in entries if entry.is_dir() and os.access(entry, os.R_OK | os.X_OK)]
    for directory in sorted(directories, key=lambda path: (path != out, path)):
        for entry in _entries(directory):
            found.setdefault(entry.shard.key, []).append((directory, entry))
    return found


def take(planned: PlannedShard, finished: Finished, work: Path, *, full: bool) -> bool:
    """Put a finished shard of the same key into a working directory; false if there is none that is whole.

    The files are hard links, or copies where the file system knows none.
    """
    for directory, entry in finished.get(planned.key, []):
        digests = entry.shard.digests()
        if entry.shard.file != planned.file or any(damaged_files(directory, digests, None if full else entry.stamps)):
            continue
        if directory != work:
            for name in digests:
                _link(directory / name, work / name)
        write_entry(work, entry.shard)
        return True
    return False


def remove_partial(out: Path, family: str) -> None:
    """Remove the working directories of `out`, and those of other outputs of its `family` that nobody works on.

    An output of the pipeline bears the digest of its manifest; once the images have changed, nobody continues it.
    """
    _remove(out.parent.glob(f"{glob.escape(out.name)}.partial-*"))
    if out.name.startswith(f"{family}-"):
        for partial in out.parent.glob(f"{glob.escape(family)}-*.partial-*"):
            other = out.with_name(partial.name.rsplit(".partial-", 1)[0])
            if not is_held(lock_of(other)):
                _remove([partial])
                shutil.rmtree(lock_of(other), ignore_errors=True)


def _remove(directories: Iterable[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _entries(directory: Path) -> Iterator[Entry]:
    paths = sorted((directory / ENTRIES).glob("*.json"))
    if paths:
        yield from filter(None, map(load_entry, paths))
    elif (directory / INDEX).is_file():
        try:
            index, stamps = load_index(directory), read_stamps(directory)
        except InputError:
            return
        for shard in index.all_shards():
            yield Entry(shard, {name: stamps[name] for name in shard.digests() if name in stamps})


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
