"""Kill a function at every point where it changes files, and check what is left each time.

    points = kill_at_commit_points(partial(validate, root, out), check, reset=reset)

A SIGKILL at a random moment rarely hits the few microseconds between two renames. Here the function runs once for each
of its commit points and is killed there, so every state that a crash can leave on the disk is met exactly once:

- before each `os.rename`, `os.replace`, `os.link`, `os.remove`, `os.rmdir`, and each opening of a file for writing;
- before each `os.fsync` of a file, twice: with half of the file written, then with all of it;
- before each `os.fsync` of a directory.

What native code writes without Python (MindRecord, Arrow's own files) has no point of its own; the rename after it has.
"""

from __future__ import annotations

import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 120  # that one call may take
_CHANGES = ("os.rename", "os.link", "os.remove", "os.rmdir")  # audit events; os.replace raises os.rename
_WRITES = os.O_WRONLY | os.O_RDWR


def kill_at_commit_points(
    work: Callable[[], object], check: Callable[[int], None], *, reset: Callable[[], None]
) -> int:
    """Kill `work` at its first commit point, at its second, and so on, and return how many it has.

    For k = 1, 2, ...: call `reset`, run `work` in a process of its own that is killed at point k, then call `check(k)`.
    The last call of `work` has fewer than k points and finishes; `check` is called after it as well.

    Args:
        work: can be pickled: `functools.partial` of a function of a module. It runs in a child of a fresh interpreter,
            so fixtures that patch this process do not reach it. Only points of this child count, not those of worker
            processes: run with one worker.
        check: runs in this process. It usually calls `work` again and compares the result with an undisturbed one.
        reset: runs in this process. It restores the files that `work` starts from.

    Raises:
        AssertionError: `work` raised, or took longer than SECONDS; with what it printed.
    """
    with tempfile.TemporaryFile() as printed:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.commit_points"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            pickle.dump(work, server.stdin)
            for point in count(1):
                reset()
                pickle.dump(point, server.stdin)
                server.stdin.flush()
                answer = server.stdout.readline()
                if answer not in (b"0\n", b"%d\n" % -signal.SIGKILL):
                    printed.seek(0)
                    raise AssertionError(f"point {point}: exit code {answer!r}\n{printed.read().decode()}")
                check(point)
                if answer == b"0\n":
                    return point - 1
        finally:
            server.kill()
            server.communicate()
    raise AssertionError("unreachable")


def _serve() -> None:
    """Fork a child for each number that comes in, run the function in it, and print its exit code."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the function prints
    work = pickle.load(requests)
    while True:
        try:
            point = pickle.load(requests)
        except EOFError:
            return
        child = os.fork()
        if not child:
            _run(work, point)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(work: Callable[[], object], point: int) -> None:
    code = 1
    try:
        signal.alarm(SECONDS)
        _die_at(point)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _die_at(point: int) -> None:
    """Count the commit points of this process from now on, and kill it at number `point`."""
    passed, sync = count(1), os.fsync

    def commit() -> bool:
        return next(passed) == point

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(args[0], (str, bytes)) and isinstance(args[2], int)
        writes = opened and args[2] & _WRITES and not os.fsdecode(args[0]).startswith(("/dev/", "/proc/"))
        if (writes or event in _CHANGES) and commit():
            die()

    def fsync(file: Any) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and commit():
            os.truncate(f"/proc/self/fd/{descriptor}", status.st_size // 2)
            die()
        if commit():
            die()
        sync(file)

    sys.addaudithook(hook)
    os.fsync = fsync


if __name__ == "__main__":
    _serve()
