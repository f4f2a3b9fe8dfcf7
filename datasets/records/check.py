"""Whether the files of a records directory are those that were written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets.base.digests import file_checksum, file_digest
from datasets.base.errors import InputError
from datasets.base.files import write_json
from datasets.records.index import REDO, Index, load_index

STAMPS = "stamps.json"  # size and mtime of each file after it was written; index.json has what is equal on each run


def check_files(directory: Path, *, full: bool) -> Index:
    """Check every file that the index names, in threads, and return the index.

    A file that has the size and mtime of when it was written counts as whole. The digests of the others are compared;
    with `full`, those of all files.

    Raises:
        InputError: a file is missing or differs.
    """
    index = load_index(directory)
    digests = index.digests()
    stamps = {} if full else _read_stamps(directory)

    def fault(name: str) -> str | None:
        path = directory / name
        if not path.is_file():
            return "no such file"
        if stamps.get(name) == _stamp(path):
            return None
        expected = digests[name]
        found = file_checksum(path) if ":" in expected else file_digest(path)
        return f"other content ({found[:17]}.., written as {expected[:17]}..)" if found != expected else None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        faults = [(name, why) for name, why in zip(digests, pool.map(fault, digests)) if why is not None]
    if faults:
        name, why = faults[0]
        more = f" ({len(faults)} files in all)" if len(faults) > 1 else ""
        todo = f"{REDO}, with --full" if full else REDO
        raise InputError(directory / name, expected="the file that was written", found=why + more, todo=todo)
    return index


def write_stamps(directory: Path, names: Iterable[str]) -> None:
    """Write down the size and mtime of files that are known to be whole, for `check_files`."""
    write_json(directory / STAMPS, {name: _stamp(directory / name) for name in names})


def _stamp(path: Path) -> list[int]:
    """Return a file's size in bytes and mtime in ns, which change if the file is written to."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _read_stamps(directory: Path) -> dict[str, list[int]]:
    """Return what `write_stamps` wrote; nothing if it is missing or damaged."""
    try:
        return dict(json.loads((directory / STAMPS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
