"""Finds and ends the processes of a launch, and makes sure that no child outlives its parent.

This file run as a script is the guard, a process between the launcher and each of its processes. `mae.launch.ranks`
shows the tree. The guard needs only the standard library and Linux.

    process_tree.py exec COMMAND...        become COMMAND
    process_tree.py supervise COMMAND...   run COMMAND as a child and write its exit code to <launch dir>/<name>.json

A guard leads a process group of its own, so that Ctrl-C in a terminal reaches the launcher only: msrun would exit with
code 0. A preexec function in the launcher could do the same, but it is unsafe in a process with threads, such as a
flow's.

Every process of a launch has MAE_LAUNCH_DIR=<launch dir> in its environment. That variable identifies the process in
any process group or session. Another process that reuses its pid does not have it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

LAUNCH_DIR = "MAE_LAUNCH_DIR"
PARENT = "MAE_LAUNCH_PARENT"  # pid of the process that must outlive this one
_KILL_SECONDS = 5.0  # limit for the kernel to end processes after SIGKILL
_LOOK_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


def started(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot (proc(5), field 22); None if it has ended.

    Linux reuses pids, but a pid together with its start time is unique. A zombie counts as ended.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]


def members(launch_dir: Path) -> set[int]:
    """Return the pids of a launch's living processes, without this process."""
    return with_variable(LAUNCH_DIR, str(launch_dir)) - {os.getpid()}


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


def end_tree(launch_dir: Path, *, top: int | None, grace: float) -> None:
    """Send SIGTERM to all processes of a launch, and after `grace` seconds SIGKILL to those that are still there.

    Args:
        top: pid of the topmost process. It gets no SIGTERM, because its end kills the others without their grace.
    """
    if grace:
        _send(signal.SIGTERM, members(launch_dir) - {top})
        deadline = time.monotonic() + grace
        while members(launch_dir) - {top} and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
    deadline = time.monotonic() + _KILL_SECONDS
    while left := members(launch_dir):  # in a loop, because one of them may have forked meanwhile
        _send(signal.SIGKILL, left)
        if time.monotonic() > deadline:
            log.error("processes %s survived SIGKILL: they wait for a device or a file system", sorted(left))
            return
        time.sleep(_LOOK_SECONDS)


def _send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _guard(mode: str, command: list[str]) -> None:
    _die_with_parent()
    if os.getpgid(0) != os.getpid():  # msrun makes a rank's guard a session leader, for which setpgid fails
        os.setpgid(0, 0)
    if mode == "exec":
        os.execv(command[0], command)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the child handles SIGTERM; the guard stays to record its end
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _die_with_parent()
        os.execv(command[0], command)
    _record({"guard": os.getpid(), "guard_started": started(os.getpid())})
    returncode = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _record({"returncode": returncode, "ended": time.time()})
    sys.exit(returncode if returncode >= 0 else 128 - returncode)


def _die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies. Exit if the parent has already died."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(os.environ[PARENT]):
        os._exit(1)
    os.environ[PARENT] = str(os.getpid())


def _record(end: dict[str, object]) -> None:
    name = "scheduler" if os.environ.get("MS_ROLE") == "MS_SCHED" else f"rank_{os.environ['RANK_ID']}"
    path = Path(os.environ[LAUNCH_DIR], f"{name}.json")
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(end))
    partial.replace(path)


if __name__ == "__main__":
    _guard(sys.argv[1], sys.argv[2:])
