"""Life and death of a launch's processes: no child outlives its parent, and all that is left can be found and ended.

Run by path it is the guard, a process between a launcher and one of its processes (`mae.launch.ranks` shows the tree):

    process_tree.py exec COMMAND...        become COMMAND
    process_tree.py supervise COMMAND...   run COMMAND as a child and write its end to <launch directory>/<name>.json

Either leads a process group of its own, so that Ctrl-C in a terminal reaches the launcher only (msrun would exit with
code 0). A preexec function of the launcher could do that too, but is unsafe in a process with threads: a flow has them.

Every process of a launch has MAE_LAUNCH_DIR=<launch directory> in its environment. It is found by that, in whatever
process group or session it is, and a recycled pid is never mistaken for it. Standard library only; Linux only.
"""

from __future__ import annotations

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
_KILL_SECONDS = 5.0  # that the kernel is given to end killed processes
_LOOK_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


def started(pid: int) -> str | None:
    """Start time of a living process in clock ticks since boot (proc(5), field 22); None if it is gone or a zombie.

    A pid is used again some day, a pid with its start time is not.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]


def members(launch_dir: Path) -> set[int]:
    """Pids of the living processes of a launch, without this one."""
    return with_variable(LAUNCH_DIR, str(launch_dir)) - {os.getpid()}


def with_variable(name: str, value: str) -> set[int]:
    """Pids of the living processes that were started with an environment variable of this value.

    A zombie has no environment any more and is none.
    """
    mark = f"{name}={value}".encode()
    pids = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                pids.add(int(path.parent.name))
        except OSError:  # it has ended, or belongs to someone else
            continue
    return pids


def end_tree(launch_dir: Path, *, top: int | None, grace: float) -> None:
    """SIGTERM to all processes of a launch, after `grace` seconds SIGKILL to those that are left.

    `top` gets no SIGTERM: the end of the topmost process ends the others at once, without their grace.
    """
    if grace:
        _send(signal.SIGTERM, members(launch_dir) - {top})
        _wait_for_end(launch_dir, spare=top, seconds=grace)
    deadline = time.monotonic() + _KILL_SECONDS
    while left := members(launch_dir):  # once more, because one of them may have forked meanwhile
        _send(signal.SIGKILL, left)
        if time.monotonic() > deadline:
            log.error("processes %s survive SIGKILL: they wait for a device or a file system", sorted(left))
            return
        time.sleep(_LOOK_SECONDS)


def _wait_for_end(launch_dir: Path, *, spare: int | None, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while members(launch_dir) - {spare} and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _send(number: signal.Signals, pids: set[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _guard(mode: str, command: list[str]) -> None:
    _die_with_parent()
    if os.getpgid(0) != os.getpid():  # msrun has made a rank's guard a session leader, who may not
        os.setpgid(0, 0)
    if mode == "exec":
        os.execv(command[0], command)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the child decides how it ends; its guard lives to record that
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
    """Have the kernel kill this process when its parent dies; exit if that has happened already."""
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
