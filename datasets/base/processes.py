"""Finds processes of this machine by their start time or by a variable in their environment, and ends them. Linux."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import Optional

START_TOLERANCE = 100  # clock ticks, 1 s: under user-mode emulation a process reads another start time than others do
_KILL_SECONDS = 5.0  # limit for the kernel to end processes after SIGKILL
_LOOK_SECONDS = 0.05

logger = logging.getLogger(__name__)


def started(pid: int) -> Optional[str]:
    """Return the start time of a process in clock ticks since boot (proc(5), field 22); None if it has ended.

    A zombie counts as ended.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]


def is_running(pid: int, start_time: str) -> bool:
    """Return whether the process that had this pid and this start time is still running.

    Linux reuses pids, but not within START_TOLERANCE.
    """
    now = started(pid)
    return now is not None and abs(int(now) - int(start_time)) <= START_TOLERANCE


def with_variable(name: str, value: str) -> set[int]:
    """Return the pids of the living processes that were started with this value of an environment variable.

    Zombies are not included, because they no longer have an environment.
    """
    mark = f"{name}={value}".encode()
    pids = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                pids.add(int(path.parent.name))
        except OSError:  # the process has ended, or belongs to another user
            continue
    return pids


def end_all(name: str, value: str, *, grace: float) -> None:
    """Send SIGTERM to the processes with this variable, and after `grace` seconds SIGKILL to those that are left.

    This process is spared.
    """

    def left() -> set[int]:
        return with_variable(name, value) - {os.getpid()}

    if grace:
        _send(signal.SIGTERM, left())
        deadline = time.monotonic() + grace
        while left() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
    deadline = time.monotonic() + _KILL_SECONDS
    while pids := left():  # in a loop, because one of them may have forked meanwhile
        _send(signal.SIGKILL, pids)
        if time.monotonic() > deadline:
            logger.error("processes %s survived SIGKILL: they wait for a device or a file system", sorted(pids))
            return
        time.sleep(_LOOK_SECONDS)


def _send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
