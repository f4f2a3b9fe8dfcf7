"""Locks on directories, between processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a directory alone: wait until no other process holds it, and create it if it is missing.

    The kernel releases the lock of a process that died. The holder may remove the directory. A process that waits for
    it then creates it again and holds the new one.
    """
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        with _held(directory, fcntl.LOCK_EX) as descriptor:
            if _still_there(directory, descriptor):
                yield
                return


@contextmanager
def shared(directory: Path) -> Iterator[None]:
    """Hold an existing directory together with other callers of `shared`; callers of `exclusive` wait."""
    with _held(directory, fcntl.LOCK_SH):
        yield


@contextmanager
def _held(directory: Path, how: int) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


def _still_there(directory: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(directory), os.fstat(descriptor))
    except FileNotFoundError:
        return False
