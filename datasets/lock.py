"""One process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a directory, which is made if need be, against other processes; the kernel lets go of a dead one's."""
    directory.mkdir(parents=True, exist_ok=True)
    with _held(directory, fcntl.LOCK_EX):
        yield


@contextmanager
def shared(directory: Path) -> Iterator[None]:
    """Hold an existing directory together with other processes, against those that want it for themselves."""
    with _held(directory, fcntl.LOCK_SH):
        yield


@contextmanager
def _held(directory: Path, how: int) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
