"""Locks of this server's NPUs. A lock ends when the last process of the tree that computes on the NPU has ended.

Each NPU has a file in a folder that all users of the server share. The holder has an exclusive flock on it, which its
child processes inherit, and writes its name into it.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import pwd
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from datasets.base.errors import InputError

# The first folder in which every user may create files. The choice may not depend on the user or on TMPDIR.
FOLDERS = ("/run/lock", "/tmp")


class DeviceHeld(InputError):  # noqa: N818  (the state of an NPU)
    """An NPU that a job needs is held by another process tree."""


@contextlib.contextmanager
def devices_held(devices: Sequence[int], owner: str) -> Iterator[list[int]]:
    """Hold NPUs of this server. Yields the file descriptors that child processes have to inherit.

    Args:
        devices: physical numbers of the NPUs, as in /dev/davinci<N>.
        owner: what they are used for, shown to others.

    Raises:
        DeviceHeld: another process tree holds one of them. None of them is held then.
    """
    with contextlib.ExitStack() as stack:
        locks = []
        for device in sorted(devices):
            lock = _open(device)
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DeviceHeld(
                    f"NPU {device} of this server",
                    expected="an NPU that no other job uses",
                    found=f"that it is held by {_read(lock)}",
                    todo="wait for that job, or choose other NPUs with a rank table",
                ) from None
            locks.append(lock)
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        holder = {"owner": owner, "pid": os.getpid(), "user": _user(), "since": since}
        for lock in locks:
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(holder).encode(), 0)
        yield locks


def holder(device: int) -> Optional[str]:
    """Return who holds an NPU of this server, for example "run x (process 7 of anna, since ...)"; None if it is free.

    Another process may take it at any time after that.
    """
    lock = _open(device)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(lock)
    finally:
        os.close(lock)
    return None


def _open(device: int) -> int:
    """Open the file of an NPU, and create it if it is missing.

    Linux may refuse O_CREAT for the existing file of another user in such a folder (fs.protected_regular).
    """
    folder = next(folder for folder in FOLDERS if Path(folder).is_dir() and os.stat(folder).st_mode & 0o002)
    path, flags = f"{folder}/maeflow-npu-{device}.lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        with contextlib.suppress(FileExistsError):
            lock = os.open(path, flags | os.O_CREAT | os.O_EXCL)
            os.fchmod(lock, 0o666)  # whatever this user's umask
            return lock


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container
        return f"user {os.getuid()}"


def _read(lock: int) -> str:
    try:
        found = json.loads(os.pread(lock, 4096, 0))
        return "{owner} (process {pid} of {user}, since {since})".format(**found)
    except (ValueError, TypeError, KeyError):  # its holder has not written it yet
        return "another process"
