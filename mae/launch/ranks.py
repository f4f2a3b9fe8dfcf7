"""Runs the ranks of one server as a child process tree that never outlives its purpose.

    launcher -> msrun -> guard -> rank 0        each arrow: the kernel kills the child when its parent dies
                      -> guard -> rank 1        (PR_SET_PDEATHSIG), whatever the parent died of
                      -> guard -> scheduler     one rank alone: launcher -> guard -> rank 0

msrun by itself is not enough (measured with MindSpore 2.10): it gives each rank a session of its own, so that no signal
to msrun or to its process group reaches a rank; after a rank has died it waits 35 s for the scheduler; and it does not
say which rank was first. The guard (`mae/process_tree.py`) records how its process ended, and the launcher ends the
others within a second.
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
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.base.errors import InputError
from datasets.base.files import write_json
from mae.launch.process_tree import LAUNCH_DIR, PARENT, end_tree, started

GUARD = str(Path(__file__).with_name("process_tree.py"))
CLUSTER_SECONDS = 300  # from the first rank's communication.init() to the last one's
OWNER = "launcher.json"  # of the launch directory: who launched
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
WATCH_SECONDS = 0.1
SETTLE_SECONDS = 0.3  # after a first death is seen: a guard may still be writing an earlier one
TAIL_LINES = 20
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class RanksFailed(Exception):  # noqa: N818  (the failure of a job, not a fault of this program)
    """The ranks ended before their work was done, and no input is known to be at fault: a retry may help.

    The text's first line says all; the last lines of the log follow it.

    Args:
        process: the first that failed: "rank 1", "scheduler", "msrun", or "the ranks" where they hang.
        how: what happened to it.
        log_path: its log.
        tail: the log's last lines.
        returncode: exit code, or minus the signal; None where it is not known.
    """

    def __init__(self, process: str, how: str, log_path: Path, tail: str, returncode: int | None = None) -> None:
        super().__init__(process, how, log_path, tail, returncode)  # all of them, so that it can be pickled
        self.process, self.how, self.log_path, self.tail, self.returncode = process, how, log_path, tail, returncode

    @property
    def rank(self) -> int | None:
        """Number of the rank that failed first; None where it was not a rank."""
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
    env: Mapping[str, str] | None = None,
    poll: Callable[[], Hashable] | None = None,
    poll_seconds: float = 1.0,
    hang_seconds: float | None = None,
    rank_table: Path | None = None,
    python: str | None = None,
) -> None:
    """Run `python <command>` as `ranks` processes and return when all of them have exited with code 0.

    Nothing of the process tree is left when this returns or raises, and the kernel ends it if this process is killed.
    No signal handlers are set here: KeyboardInterrupt, or whatever the caller turns SIGTERM into, ends the tree on
    its way out; an unhandled SIGTERM ends it by ending this process.

    Args:
        command: arguments of the interpreter, e.g. ["-m", "mae.training.engine", "runs/demo"]. A rank's code goes into
            `rank_main`. With more than one rank msrun also runs the command as the scheduler, whose
            `mindspore.communication.init()` does not return.
        log_dir: receives rank_<n>.log, scheduler.log and msrun.log; an earlier attempt's move to attempt-<k>/.
        run_dir: receives launch/ while the ranks run; two launches in one run directory are an error.
        env: more environment variables for the ranks. Unless it or this process sets them, the numerical libraries get
            one thread per core and rank, and MindSpore logs errors only (GLOG_v=3).
        poll: called each `poll_seconds`; what it raises ends the tree. Returns a token that changes with progress.
        hang_seconds: the ranks are killed when `poll` has given no new token for so long, from the start on.
        rank_table: Ascend only, handed to msrun as --rank_table_file; never run on this project's test machines.
        python: the ranks' interpreter, beside which msrun stands; none means this one.

    Raises:
        InputError: a rank raised it (`rank_main`), the run is being trained by another process, or no msrun was found.
        RanksFailed: a rank died, the scheduler or msrun did, or the ranks hang.
    """
    log_dir, launch_dir, interpreter = log_dir.absolute(), _launch_dir(run_dir), _interpreter(python)
    environment = _environment(env or {}, ranks=ranks, launch_dir=launch_dir, interpreter=interpreter)
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
        grace = 0.0  # only msrun and a scheduler that looks each 5 s whether the ranks have left remain
    finally:
        end_tree(launch_dir, top=process.pid if process else None, grace=grace)
        if process:
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that even SIGKILL does not end has been logged
                process.wait(GRACE_SECONDS)
        shutil.rmtree(launch_dir, ignore_errors=True)


def msrun_command(
    command: Sequence[str], *, ranks: int, port: int, log_dir: Path, python: str, rank_table: Path | None = None
) -> list[str]:
    """The command line that starts `python <command>` as ranks 0..ranks-1 of this server, each under its guard.

    msrun itself decides on `python` from PATH for the script it is given, here the guard, which then starts `python`.
    Of a rank table MindSpore's documentation says that it serves the ranks in a job built by msrun; the job is still
    built through the scheduler at 127.0.0.1.
    """
    msrun = Path(python).with_name("msrun")
    if not msrun.is_file():
        raise InputError(
            msrun,
            expected="msrun beside the ranks' interpreter",
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
        "tail_worker_log": ranks,  # no such rank: do not copy the ranks' logs into msrun's
    }
    if rank_table:
        options["rank_table_file"] = rank_table
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [python, str(msrun), *flags, GUARD, "supervise", python, *command]


def rank_main(function: Callable[[], None]) -> None:
    """Call `function` as the body of a rank: its InputError becomes the launcher's.

    Any exception ends the process at once: MindSpore's own way out waits for the other ranks.
    """
    try:
        function()
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk, on which log and error.json may be
            _tell(error)
        os._exit(1)


def _tell(error: Exception) -> None:
    if isinstance(error, InputError) and LAUNCH_DIR in os.environ:
        write_json(Path(os.environ[LAUNCH_DIR], "error.json"), {"kind": "InputError", "message": str(error)})
    if isinstance(error, InputError):
        print(error, file=sys.stderr)
    else:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()


def reap(run_dir: Path) -> None:
    """Kill what is left of a launch in `run_dir` on this machine: for hooks that run after a launcher has died."""
    launch_dir = _launch_dir(run_dir)
    end_tree(launch_dir, top=None, grace=GRACE_SECONDS)
    shutil.rmtree(launch_dir, ignore_errors=True)


def _launch_dir(run_dir: Path) -> Path:
    return run_dir.resolve() / "launch"


def _interpreter(python: str | None) -> str:
    found = shutil.which(python or sys.executable)
    if not found:
        raise InputError(
            "device.python", expected="a Python interpreter", found=repr(python), todo="give its path, or leave it out"
        )
    return str(Path(found).absolute())


def _environment(env: Mapping[str, str], *, ranks: int, launch_dir: Path, interpreter: str) -> dict[str, str]:
    threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
    defaults = {
        **dict.fromkeys(THREAD_VARIABLES, threads),
        "GLOG_v": "3",
        # Seconds between the heartbeats by which a rank learns that all are there and, at its end, that it may leave.
        # MindSpore's 3 to 5 cost about 2 s more per launch. (MS_DISABLE_HEARTBEAT crashed rank 0 in 2 launches of 6.)
        "MS_RETRY_INTERVAL_LOWER": "1",
        "MS_RETRY_INTERVAL_UPPER": "1",
        "PYTHONUNBUFFERED": "1",  # a killed rank's last lines are in its log
    }
    merged = {**defaults, **os.environ, **env}
    merged["PATH"] = f"{Path(interpreter).parent}{os.pathsep}{merged.get('PATH', os.defpath)}"
    if ranks == 1:
        merged["RANK_ID"] = "0"
    return {**merged, LAUNCH_DIR: str(launch_dir), PARENT: str(os.getpid())}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_free(run_dir: Path) -> None:
    """Refuse a run directory in which another process of this machine has a launch that is alive.

    Raises:
        InputError: one is.
    """
    owner = _read_json(_launch_dir(run_dir) / OWNER)
    if owner and started(owner["pid"]) == owner["started"]:
        raise InputError(
            run_dir,
            expected="no other launch in this run directory",
            found=f"one by process {owner['pid']}",
            todo="wait for it, or end that process",
        )


def _claim(run_dir: Path) -> None:
    """Take the run directory for this process; what a dead launcher left in it is killed first."""
    check_free(run_dir)
    reap(run_dir)
    write_json(_launch_dir(run_dir) / OWNER, {"pid": os.getpid(), "started": started(os.getpid())})


def _set_logs_aside(log_dir: Path) -> None:
    """msrun overwrites logs, and the failed attempt's are what one wants to read after a retry."""
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
    """Return when all ranks have ended well; raise for the first that has not, or when there is no progress."""
    token: Hashable = None
    progressed = polled = time.monotonic()
    while True:
        top_returncode = process.poll()  # before the records are read: they are complete when it has ended
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
        poll()  # the last lines that the ranks wrote


def _ends(launch_dir: Path) -> dict[str, int | None]:
    """Return codes of the processes that have ended, the first to end first; None where the guard was killed too."""
    ends: list[tuple[float, str, int | None]] = []
    for path in launch_dir.glob("*.json"):
        record = _read_json(path) or {}
        if "guard" in record and started(record["guard"]) != record["guard_started"]:
            record = _read_json(path)  # a guard writes its last record before it goes
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
    """The error for the first failure among the ends that were seen first and those a moment later."""
    error = _read_json(launch_dir / "error.json")
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
