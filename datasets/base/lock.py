"""One process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a directory, which is made if need be, against other processes; the kernel lets go of a dead one's.

    Who holds it may remove it: those who wait then make and hold a new one.
    """
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        with _held(directory, fcntl.LOCK_EX) as descriptor:
            if _still_there(directory, descriptor):
                yield
                return


@contextmanager
def shared(directory: Path) -> Iterator[None]:
    """Hold an existing directory together with other processes, against those that want it for themselves."""
    with _held(directory, fcntl.LOCK_SH):
        yield


def is_held(directory: Path) -> bool:
    """Whether a living process holds a directory."""
    try:
        with _held(directory, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


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
