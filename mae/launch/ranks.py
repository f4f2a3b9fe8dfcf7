"""Starts the ranks of one server as a tree of child processes, watches them, and leaves none of them running.

    launcher -> msrun -> guard -> rank 0        each arrow: the kernel kills the child when its parent dies
                      -> guard -> rank 1        for whatever reason (PR_SET_PDEATHSIG)
                      -> guard -> scheduler     a single rank: launcher -> guard -> rank 0

msrun alone is not enough (measured with MindSpore 2.10). It starts each rank in a session of its own, so a signal to
msrun or to its process group reaches no rank. After a rank has died, it waits 35 s for the scheduler. It does not
report which rank failed first. The guard (process_tree.py) records how its process ended, and the launcher then ends
the other processes within a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from datasets.base.errors import InputError
from datasets.base.files import write_json
from mae.launch.process_tree import LAUNCH_DIR, PARENT, end_tree, started

GUARD = str(Path(__file__).with_name("process_tree.py"))
CLUSTER_SECONDS = 300  # limit between the first rank's communication.init() and the last one's
OWNER = "launcher.json"  # in the launch directory: the launcher's pid and start time
ERROR = "error.json"  # in the launch directory: the InputError of a rank
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
WATCH_SECONDS = 0.1
SETTLE_SECONDS = 0.3  # pause after the first end is seen, because a guard may still be recording an earlier one
TAIL_LINES = 20
PYTHON = "MAE_PYTHON"  # environment variable with the interpreter of jobs that name none
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class RanksFailed(Exception):  # noqa: N818  (the failure of a job, not an error of this program)
    """The ranks ended before their work was done, and no wrong input is known: a retry may help.

    The first line of the text is the whole message. The last lines of the log follow it.

    Args:
        process: the first one that failed: "rank 1", "scheduler", "msrun", or "the ranks" if they hang.
        how: what happened to it.
        log_path: its log.
        tail: the last lines of that log.
        returncode: exit code, or minus the signal's number; None if it is not known.
    """

    def __init__(self, process: str, how: str, log_path: Path, tail: str, returncode: int | None = None) -> None:
        super().__init__(process, how, log_path, tail, returncode)  # all arguments, for pickle
        self.process, self.how, self.log_path, self.tail, self.returncode = process, how, log_path, tail, returncode

    @property
    def rank(self) -> int | None:
        """The rank that failed first; None if another process failed first."""
        return int(self.process[5:]) if self.process.startswith("rank ") else None

    def __str__(self) -> str:
        first = f"{self.process} {self.how}; its log is {self.log_path}"
        return f"{first}, and ends:\n{self.tail}" if self.tail else first


def run_ranks(
    command: Sequence[str],
    *,
    ranks: int,
    log_dir: Path,
    run_dir: Path,
    poll: Callable[[], Hashable] | None = None,
    poll_seconds: float = 1.0,
    hang_seconds: float | None = None,
    rank_table: Path | None = None,
    python: str | None = None,
) -> None:
    """Run `python <command>` as `ranks` processes and return when all of them have exited with code 0.

    No process of the tree is left when this function returns or raises. If this process is killed, the kernel ends the
    tree. This function sets no signal handlers: KeyboardInterrupt, or the exception that the caller raises on SIGTERM,
    ends the tree. An unhandled SIGTERM ends this process and so the tree.

    The ranks inherit this process's environment. Unless it sets them, the numerical libraries get the number of cores
    divided by `ranks` as their number of threads, and MindSpore logs errors only (GLOG_v=3).

    Args:
        command: arguments of the interpreter, for example ["-m", "mae.training.engine", "runs/demo"], which calls
            `rank_main`. With more than one rank msrun also runs the command as the scheduler, in which
            `mindspore.communication.init()` does not return.
        log_dir: receives rank_<n>.log, scheduler.log and msrun.log. Logs of an earlier attempt move to attempt-<k>/.
        run_dir: contains launch/ while the ranks run. A second launch in the same run directory is an error.
        poll: called every `poll_seconds`. It returns a token that changes with progress. An exception ends the tree.
        hang_seconds: the ranks are killed if `poll` has returned the same token for this long.
        rank_table: Ascend only: passed to msrun as --rank_table_file. This project's test machines never ran it.
        python: the ranks' interpreter, with msrun in the same folder. Default: this process's interpreter.

    Raises:
        InputError: a rank raised it (`rank_main`), another process trains the run, or there is no msrun.
        RanksFailed: a rank, the scheduler or msrun died, or the ranks hang.
    """
    log_dir, launch_dir, interpreter = log_dir.absolute(), _launch_dir(run_dir), _interpreter(python)
    environment = _environment(ranks=ranks, launch_dir=launch_dir, interpreter=interpreter)
    if ranks == 1:
        arguments, output = [interpreter, GUARD, "supervise", interpreter, *command], log_dir / "rank_0.log"
    else:
        arguments, output = [interpreter, GUARD, "exec"], log_dir / "msrun.log"
        arguments += msrun_command(
            command, ranks=ranks, port=_free_port(), log_dir=log_dir, python=interpreter, rank_table=rank_table
        )
    _claim(run_dir)
    process, grace = None, GRACE_SECONDS
    try:
        _set_logs_aside(log_dir)
        with output.open("wb") as file:
            process = subprocess.Popen(
                arguments, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
        _watch(process, ranks, launch_dir, log_dir, poll, poll_seconds, hang_seconds)
        grace = 0.0  # only msrun is left, and the scheduler, which checks every 5 s whether the ranks have left
    finally:
        end_tree(launch_dir, top=process.pid if process else None, grace=grace)
        if process:
            with contextlib.suppress(subprocess.TimeoutExpired):  # end_tree has logged a process that survives SIGKILL
                process.wait(GRACE_SECONDS)
        shutil.rmtree(launch_dir, ignore_errors=True)


def msrun_command(
    command: Sequence[str], *, ranks: int, port: int, log_dir: Path, python: str, rank_table: Path | None = None
) -> list[str]:
    """Return the command line that starts `python <command>` as ranks 0..ranks-1 of this server, each under its guard.

    msrun runs its script, here the guard, with the `python` on PATH. The guard then starts the given `python`. With a
    rank table msrun still connects the ranks through the scheduler at 127.0.0.1; according to MindSpore's documentation
    the ranks then read the table.
    """
    msrun = Path(python).with_name("msrun")
    if not msrun.is_file():
        raise InputError(
            msrun,
            expected="msrun in the folder of the ranks' interpreter",
            found="no such file",
            todo=f"install mindspore for {python}",
        )
    options: dict[str, object] = {
        "worker_num": ranks,
        "local_worker_num": ranks,
        "master_addr": "127.0.0.1",
        "master_port": port,
        "join": True,
        "cluster_time_out": CLUSTER_SECONDS,
        "log_dir": log_dir,
        "worker_log_name": "rank",
        "tail_worker_log": ranks,  # a rank that does not exist, so msrun's log has no copy of a rank's log
    }
    if rank_table:
        options["rank_table_file"] = rank_table
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [python, str(msrun), *flags, GUARD, "supervise", python, *command]


def rank_main(function: Callable[[], None]) -> None:
    """Call `function` as the body of a rank. The launcher raises the InputError that `function` raises.

    Any exception ends the process at once, because MindSpore's own exit handlers wait for the other ranks.
    """
    try:
        function()
    except Exception as error:
        with contextlib.suppress(OSError):  # the log or error.json may be on a full disk
            _report(error)
        os._exit(1)


def _report(error: Exception) -> None:
    if isinstance(error, InputError):
        if LAUNCH_DIR in os.environ:
            write_json(Path(os.environ[LAUNCH_DIR], ERROR), {"message": str(error)})
        print(error, file=sys.stderr)
    else:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()


def reap(run_dir: Path) -> None:
    """End the processes of a launch in `run_dir` on this machine. For hooks that run after a launcher has died."""
    launch_dir = _launch_dir(run_dir)
    end_tree(launch_dir, top=None, grace=GRACE_SECONDS)
    shutil.rmtree(launch_dir, ignore_errors=True)


def _launch_dir(run_dir: Path) -> Path:
    return run_dir.resolve() / "launch"


def _interpreter(python: str | None) -> str:
    found = shutil.which(python or os.environ.get(PYTHON) or sys.executable)
    if not found:
        raise InputError(
            "device.python", expected="a Python interpreter", found=repr(python), todo="give its path, or omit it"
        )
    return str(Path(found).absolute())


def _environment(*, ranks: int, launch_dir: Path, interpreter: str) -> dict[str, str]:
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    defaults = {
        **dict.fromkeys(THREAD_VARIABLES, threads),
        "GLOG_v": "3",
        # Seconds between heartbeats. Through them a rank learns that all ranks have started, and that it may exit.
        # MindSpore's default of 3 to 5 makes a launch about 2 s longer. MS_DISABLE_HEARTBEAT crashed rank 0 in 2 of 6.
        "MS_RETRY_INTERVAL_LOWER": "1",
        "MS_RETRY_INTERVAL_UPPER": "1",
        "PYTHONUNBUFFERED": "1",  # so that the log of a killed rank has its last lines
    }
    merged = {**defaults, **os.environ}
    merged["PATH"] = f"{Path(interpreter).parent}{os.pathsep}{merged.get('PATH', os.defpath)}"
    if ranks == 1:
        merged["RANK_ID"] = "0"
    return {**merged, LAUNCH_DIR: str(launch_dir), PARENT: str(os.getpid())}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_free(run_dir: Path) -> None:
    """Raise InputError if another process of this machine is running a launch in `run_dir`."""
    owner = _read_json(_launch_dir(run_dir) / OWNER)
    if owner and started(owner["pid"]) == owner["started"]:
        raise InputError(
            run_dir,
            expected="no other launch in this run directory",
            found=f"one by process {owner['pid']}",
            todo="wait for it, or end that process",
        )


def _claim(run_dir: Path) -> None:
    """Reserve the run directory for this process. First end the processes that a dead launcher left in it."""
    check_free(run_dir)
    reap(run_dir)
    write_json(_launch_dir(run_dir) / OWNER, {"pid": os.getpid(), "started": started(os.getpid())})


def _set_logs_aside(log_dir: Path) -> None:
    """Move the logs of an earlier attempt to a folder: msrun overwrites them, and they are needed after a retry."""
    log_dir.mkdir(parents=True, exist_ok=True)
    earlier = list(log_dir.glob("*.log"))
    if earlier:
        aside = log_dir / f"attempt-{1 + len(list(log_dir.glob('attempt-*')))}"
        aside.mkdir()
        for path in earlier:
            path.rename(aside / path.name)


def _watch(
    process: subprocess.Popen[bytes],
    ranks: int,
    launch_dir: Path,
    log_dir: Path,
    poll: Callable[[], Hashable] | None,
    poll_seconds: float,
    hang_seconds: float | None,
) -> None:
    """Return when all ranks have exited with code 0. Raise for the first one that has not, or without progress."""
    token: Hashable = None
    progressed = polled = time.monotonic()
    while True:
        top_returncode = process.poll()  # before the records are read: after its end they are complete
        ends = _ends(launch_dir)
        if [ends.get(f"rank_{rank}") for rank in range(ranks)] == [0] * ranks:
            break
        if top_returncode is not None or any(returncode != 0 for returncode in ends.values()):
            time.sleep(SETTLE_SECONDS)
            raise _failure(ends, _ends(launch_dir), process.poll(), launch_dir, log_dir)
        now = time.monotonic()
        if poll and now - polled >= poll_seconds:
            polled = now
            previous, token = token, poll()
            if token != previous:
                progressed = now
        if poll and hang_seconds is not None and now - progressed > hang_seconds:
            raise RanksFailed("the ranks", f"made no progress for {hang_seconds:g} s", *_log_of("rank_0", log_dir))
        time.sleep(WATCH_SECONDS)
    if poll:
        poll()  # for the last lines that the ranks wrote


def _ends(launch_dir: Path) -> dict[str, int | None]:
    """Return the exit codes of the ended processes, in the order of their ends; None if the guard was killed too."""
    ends: list[tuple[float, str, int | None]] = []
    for path in launch_dir.glob("*.json"):
        record = _read_json(path) or {}
        if "guard" in record and started(record["guard"]) != record["guard_started"]:
            record = _read_json(path)  # again, because a guard writes its last record just before it exits
            record.setdefault("ended", time.time())
        if "ended" in record:
            ends.append((record["ended"], path.stem, record.get("returncode")))
    return {name: returncode for _, name, returncode in sorted(ends, key=lambda end: end[0])}


def _failure(
    seen: dict[str, int | None],
    settled: dict[str, int | None],
    top_returncode: int | None,
    launch_dir: Path,
    log_dir: Path,
) -> Exception:
    """Return the error for the first failure.

    Args:
        seen: the ends at the first look.
        settled: the ends SETTLE_SECONDS later.
    """
    error = _read_json(launch_dir / ERROR)
    if error:
        return InputError.from_message(error["message"])
    recorded = [(name, returncode) for name, returncode in settled.items() if returncode]
    vanished = [(name, returncode) for name, returncode in seen.items() if returncode is None]
    top = [("msrun" if (log_dir / "msrun.log").exists() else "rank_0", top_returncode)]
    name, returncode = (recorded or (top if top_returncode is not None else vanished))[0]
    return RanksFailed(name.replace("_", " "), _describe(returncode), *_log_of(name, log_dir), returncode)


def _describe(returncode: int | None) -> str:
    if returncode is None:
        return "was killed together with its guard process"
    if returncode >= 0:
        return f"exited with code {returncode}" + (" before its work was done" if returncode == 0 else "")
    hint = " (out of memory? see dmesg)" if returncode == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-returncode).name}{hint}"


def _log_of(name: str, log_dir: Path) -> tuple[Path, str]:
    path = log_dir / f"{name}.log"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return path, "\n".join(lines[-TAIL_LINES:])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
