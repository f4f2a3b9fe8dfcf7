"""Starts the ranks of one server as child processes, watches them, and leaves none of them running.

    launcher -> rank 0          each arrow: the kernel kills the child when its parent dies for whatever reason
             -> rank 1          (PR_SET_PDEATHSIG, guard.py)
             -> scheduler       only for CPUs of several servers, on the server that has rank 0

Ranks on CPUs of one server average through shared memory (mae.device), so they need neither MindSpore's scheduler nor
its communication.init(). On MindSpore 2.0 that call fails in 3 of 5 starts on busy cores: a rank that misses the answer
to its registration waits for 30 s, after which the scheduler takes it for dead.

Every process of a launch has MAE_LAUNCH_DIR=<launch dir> in its environment. That variable identifies the process in
any process group or session. Another process that reuses its pid does not have it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from datasets.base.errors import InputError
from datasets.base.files import write_json
from datasets.base.processes import end_all, is_running, started
from mae.launch.interpreter import check_interpreter, ranks_path
from mae.launch.locks import devices_held

LAUNCH_DIR, LOCAL_RANK, LOCAL_RANKS = "MAE_LAUNCH_DIR", "MAE_LOCAL_RANK", "MAE_LOCAL_RANKS"
GUARD = str(Path(__file__).with_name("guard.py"))
SCHEDULER = str(Path(__file__).with_name("scheduler.py"))
CLUSTER_SECONDS = 300  # on CPUs: limit between the first rank's communication.init() and the last one's
CONNECT_SECONDS = 1800  # on Ascend: the same for HCCL
OWNER = "launcher.json"  # in the launch directory: the launcher's pid and start time
ERROR = "error.json"  # in the launch directory: the InputError of a rank
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
WATCH_SECONDS = 0.1
TAIL_LINES = 20
# What describes a rank's place in a job. The launcher's own values are not handed on.
PLACE = (
    *("RANK_TABLE_FILE", "MINDSPORE_HCCL_CONFIG_PATH", "RANK_ID", "RANK_SIZE", "DEVICE_ID"),
    *("MS_ROLE", "MS_NODE_ID", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM"),
    "HCCL_CONNECT_TIMEOUT",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class RanksFailed(Exception):  # noqa: N818  (the failure of a job, not an error of this program)
    """The ranks ended before their work was done, and no wrong input is known: a retry may help.

    The first line of the text names the process that failed first and its log. The last lines of the log follow.
    """


@dataclass(frozen=True)
class _Process:
    name: str  # "rank 1" or "scheduler"
    command: list[str]
    environment: dict[str, str]
    log: Path


def run_ranks(
    command: Sequence[str],
    *,
    ranks: int,
    log_dir: Path,
    run_dir: Path,
    first: int = 0,
    total: Optional[int] = None,
    scheduler: Optional[str] = None,
    devices: Sequence[int] = (),
    rank_table: Optional[bytes] = None,
    connect_seconds: int = CONNECT_SECONDS,
    python: Optional[str] = None,
    owner: Optional[str] = None,
    poll: Optional[Callable[[], Hashable]] = None,
    poll_seconds: float = 1.0,
    hang_seconds: Optional[float] = None,
) -> None:
    """Run `python <command>` as `ranks` processes and return when all of them have exited with code 0.

    No process of the tree is left when this function returns or raises. If this process is killed, the kernel ends the
    tree. This function sets no signal handlers: KeyboardInterrupt, or the exception that the caller raises on SIGTERM,
    ends the tree. An unhandled SIGTERM ends this process and so the tree.

    The ranks inherit this process's environment. Unless it sets them, the numerical libraries get the number of cores
    divided by `ranks` as their number of threads, and MindSpore logs errors only (GLOG_v=3).

    Args:
        command: arguments of the interpreter, for example ["-m", "mae.training.engine", "runs/demo"], which calls
            `rank_main`.
        ranks: number of ranks on this server.
        log_dir: receives rank_<n>.log and scheduler.log. Logs of an earlier attempt move to attempt-<k>/.
        run_dir: contains launch/ while the ranks run. A second launch in the same run directory is an error.
        first: number of this server's first rank in the job.
        total: number of ranks in the whole job; none: `ranks`.
        scheduler: CPUs only: host:port at which ranks meet that use MindSpore's own collectives, as those of a job on
            several servers do. The launcher of rank 0 starts the scheduler there.
        devices: the NPU of each rank; empty on CPUs. Each is locked until the last process of the tree has ended.
        rank_table: Ascend only: content of the HCCL rank table; without one the ranks do not communicate.
        connect_seconds: Ascend only: HCCL_CONNECT_TIMEOUT of the ranks. That of this process is not passed on, because
            `import mindspore` sets it to 600.
        python: the ranks' interpreter. Default: this process's interpreter.
        owner: shown to those who need the same NPU. Default: the run directory's name.
        poll: called every `poll_seconds`. It returns a token that changes with progress. An exception ends the tree.
        hang_seconds: the ranks are killed if `poll` has returned the same token for this long.

    Raises:
        InputError: a rank raised it (`rank_main`), another process trains the run or holds an NPU, or the interpreter
            cannot run a rank.
        RanksFailed: a rank or the scheduler died, or the ranks hang.
    """
    log_dir, total = log_dir.absolute(), ranks if total is None else total
    interpreter = check_interpreter(python).path
    with _claimed(run_dir, first) as launch_dir, devices_held(devices, owner or run_dir.resolve().name) as locks:
        common = _environment(ranks=ranks, launch_dir=launch_dir)
        if scheduler is not None:
            common |= _cluster(total, scheduler)
        if devices and rank_table is not None:
            common |= _hccl(total, rank_table, launch_dir, connect_seconds)
        processes = []
        if scheduler is not None and first == 0:  # started first, because all others connect to it
            own = {"MS_ROLE": "MS_SCHED", "MS_NODE_ID": "scheduler"}
            serve = [interpreter, SCHEDULER]
            processes.append(_Process("scheduler", serve, common | own, log_dir / "scheduler.log"))
        for local, rank in enumerate(range(first, first + ranks)):
            own = {"RANK_ID": str(rank), LOCAL_RANK: str(local), LOCAL_RANKS: str(ranks)}
            if devices:
                own["DEVICE_ID"] = str(devices[local])
            if scheduler is not None:
                own |= {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank)}
            log = log_dir / f"rank_{rank}.log"
            processes.append(_Process(f"rank {rank}", [interpreter, *command], common | own, log))
        _set_logs_aside([process.log for process in processes])
        with _started(processes, launch_dir, locks) as ends:
            _follow(processes, ends, launch_dir, poll, poll_seconds, hang_seconds)


def run_child(
    module: str,
    arguments: Sequence[str],
    *,
    log_dir: Path,
    owner: str,
    ranks: int = 1,
    devices: Sequence[int] = (),
    python: Optional[str] = None,
    report_line: Optional[Callable[[str], None]] = None,
) -> None:
    """Run `python -m module arguments` as a child process, or as `ranks` of them, and return when all have ended.

    The processes do not communicate with each other; each has its number in RANK_ID. The module calls `rank_main`, so
    that an InputError in it is raised here. Everything that `run_ranks` promises holds. Results travel through files
    that `arguments` name.

    Args:
        log_dir: receives rank_<n>.log, and launch/ while the processes run.
        owner: what the child does, shown to those who need the same NPU.
        devices: the NPU of each rank; empty on CPUs.
        report_line: called with each line that rank 0 prints.

    Raises:
        InputError, RanksFailed: as `run_ranks`.
    """
    read = 0  # bytes of the log

    def poll() -> None:
        nonlocal read
        with (log_dir / "rank_0.log").open("rb") as log:
            log.seek(read)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                read += len(line)
                assert report_line is not None
                report_line(line.decode(errors="replace").rstrip())

    run_ranks(
        ["-m", module, *arguments],
        ranks=ranks,
        log_dir=log_dir,
        run_dir=log_dir,
        devices=devices,
        python=python,
        owner=owner,
        poll=None if report_line is None else poll,
        poll_seconds=WATCH_SECONDS,
    )


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
    _end(_launch_dir(run_dir, 0))


def check_free(run_dir: Path, first: int = 0) -> None:
    """Raise InputError if another process of this machine is running a launch in `run_dir`."""
    owner = _read_json(_launch_dir(run_dir, first) / OWNER)
    if owner and is_running(owner["pid"], owner["started"]):
        raise InputError(
            run_dir,
            expected="no other launch in this run directory",
            found=f"one by process {owner['pid']}",
            todo="wait for it, or end that process",
        )


def _launch_dir(run_dir: Path, first: int) -> Path:
    """Return the folder of a server's launch. Servers may share the run directory; `first` is its first rank."""
    return run_dir.resolve() / (f"launch-{first}" if first else "launch")


@contextlib.contextmanager
def _claimed(run_dir: Path, first: int) -> Iterator[Path]:
    """Reserve the run directory for this process. First end the processes that a dead launcher left in it."""
    check_free(run_dir, first)
    launch_dir = _launch_dir(run_dir, first)
    _end(launch_dir)
    write_json(launch_dir / OWNER, {"pid": os.getpid(), "started": started(os.getpid())})
    try:
        yield launch_dir
    finally:
        shutil.rmtree(launch_dir, ignore_errors=True)


def _end(launch_dir: Path) -> None:
    end_all(LAUNCH_DIR, str(launch_dir), grace=GRACE_SECONDS)
    shutil.rmtree(launch_dir, ignore_errors=True)


def _environment(*, ranks: int, launch_dir: Path) -> dict[str, str]:
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
    inherited = {name: value for name, value in os.environ.items() if name not in PLACE}
    return {**defaults, **inherited, "PYTHONPATH": ranks_path(), LAUNCH_DIR: str(launch_dir)}


def _hccl(total: int, rank_table: bytes, launch_dir: Path, connect_seconds: int) -> dict[str, str]:
    """Return what ranks on Ascend find each other by (MindSpore's documentation of RANK_TABLE_FILE)."""
    path = launch_dir / "rank_table.json"
    path.write_bytes(rank_table)
    return {"RANK_TABLE_FILE": str(path), "RANK_SIZE": str(total), "HCCL_CONNECT_TIMEOUT": str(connect_seconds)}


def _cluster(total: int, scheduler: str) -> dict[str, str]:
    """Return what ranks on CPUs find each other by (MindSpore's documentation of the dynamic cluster)."""
    host, _, port = scheduler.rpartition(":")
    return {
        "MS_SCHED_HOST": host,
        "MS_SCHED_PORT": port,
        "MS_WORKER_NUM": str(total),
        "MS_TOPO_TIMEOUT": str(CLUSTER_SECONDS),
    }


def _set_logs_aside(logs: list[Path]) -> None:
    """Move the logs of an earlier attempt to a folder: they are needed after a retry."""
    folder, number = logs[0].parent, 1
    folder.mkdir(parents=True, exist_ok=True)
    while any((folder / f"attempt-{number}" / log.name).exists() for log in logs):
        number += 1
    aside = folder / f"attempt-{number}"
    for log in filter(Path.exists, logs):
        aside.mkdir(exist_ok=True)
        log.rename(aside / log.name)


@contextlib.contextmanager
def _started(
    processes: list[_Process], launch_dir: Path, locks: Sequence[int]
) -> Iterator[queue.SimpleQueue[tuple[_Process, int]]]:
    """Start processes and end those that are left. Yields the queue of their ends and exit codes, in order."""
    ends: queue.SimpleQueue[tuple[_Process, int]] = queue.SimpleQueue()
    waiting: list[threading.Thread] = []
    grace = GRACE_SECONDS
    try:
        for process in processes:
            waiting.append(_start(process, ends, locks))
        yield ends
        grace = 0.0  # only the scheduler is left
    finally:
        end_all(LAUNCH_DIR, str(launch_dir), grace=grace)
        for thread in waiting:
            thread.join(GRACE_SECONDS)  # end_all has logged a process that survives SIGKILL


def _start(process: _Process, ends: queue.SimpleQueue[tuple[_Process, int]], locks: Sequence[int]) -> threading.Thread:
    """Start a process, and a thread that waits for its end.

    The kernel kills a child when the thread that started it ends. So this thread starts the process and stays.
    """
    command = [sys.executable, "-IS", GUARD, str(os.getpid()), *process.command]
    with process.log.open("wb") as log:
        child = subprocess.Popen(
            command,
            env=process.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=locks,
        )
    thread = threading.Thread(target=lambda: ends.put((process, child.wait())), daemon=True)
    thread.start()
    return thread


def _follow(
    processes: list[_Process],
    ends: queue.SimpleQueue[tuple[_Process, int]],
    launch_dir: Path,
    poll: Optional[Callable[[], Hashable]],
    poll_seconds: float,
    hang_seconds: Optional[float],
) -> None:
    """Return when all ranks have exited with code 0. Raise for the first one that has not, or without progress."""
    ranks = [process for process in processes if process.name != "scheduler"]
    running = {rank.name for rank in ranks}
    token: Hashable = None
    progressed = polled = time.monotonic()
    while running:
        with contextlib.suppress(queue.Empty):
            process, returncode = ends.get(timeout=WATCH_SECONDS)
            if returncode:
                raise _failure(process, returncode, launch_dir)
            running.discard(process.name)
        now = time.monotonic()
        if poll and now - polled >= poll_seconds:
            polled = now
            previous, token = token, poll()
            if token != previous:
                progressed = now
        if poll and hang_seconds is not None and now - progressed > hang_seconds:
            raise RanksFailed(_with_log("the ranks", f"made no progress for {hang_seconds:g} s", ranks[0].log))
    if poll:
        poll()  # for the last lines that the ranks wrote


def _failure(process: _Process, returncode: int, launch_dir: Path) -> Exception:
    error = _read_json(launch_dir / ERROR)
    if error:
        return InputError.from_message(error["message"])
    how = f"exited with code {returncode}"
    if returncode < 0:
        hint = " (out of memory? see dmesg)" if returncode == -signal.SIGKILL else ""
        how = f"was killed by {signal.Signals(-returncode).name}{hint}"
    return RanksFailed(_with_log(process.name, how, process.log))


def _with_log(name: str, how: str, log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return "\n".join([f"{name} {how}; its log is {log}" + (", and ends:" if lines else ""), *lines[-TAIL_LINES:]])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
