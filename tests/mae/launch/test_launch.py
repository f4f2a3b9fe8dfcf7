"""The launcher, with real processes that are really killed. Only the collective job imports MindSpore."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mae.launch.process_tree import LAUNCH_DIR, members

from datasets.base.errors import InputError
from datasets.base.files import write_json
from mae.device import context
from mae.launch import ranks as launch
from mae.launch.ranks import RanksFailed, msrun_command, rank_main, reap, run_ranks

ROOT = Path(__file__).parents[3]
CORES = len(os.sched_getaffinity(0))

SLEEP = "import time; time.sleep(100)"
AS_RANK = """
import os, signal, sys, time
rank = "sched" if os.environ.get("MS_ROLE") == "MS_SCHED" else os.environ["RANK_ID"]
"""
ALL_REDUCE = """
import time
import numpy
import mindspore
from mindspore.communication import get_rank, init
mindspore.set_device("CPU")
init()
print("sum", mindspore.ops.AllReduce()(mindspore.Tensor(numpy.array([get_rank() + 1.0], numpy.float32))), flush=True)
time.sleep(100)
"""


@pytest.fixture(scope="session")
def light_python(tmp_path_factory):
    """An interpreter with an msrun in its folder that does not import MindSpore."""
    folder = tmp_path_factory.mktemp("bin")
    script = Path(__file__).with_name("light_msrun.py").read_text()
    for name, text in {"python": f'#!/bin/sh\nexec {sys.executable} "$@"\n', "msrun": script}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return str(folder / "python")


@pytest.fixture
def run(tmp_path, light_python):
    """Call run_ranks on Python source. Afterwards check that no process and no file of the launch is left."""

    def call(source, *arguments, ranks=1, **options):
        options = {"log_dir": tmp_path / "logs", "run_dir": tmp_path, "poll_seconds": 0.1, **options}
        options.setdefault("python", light_python)
        run_ranks(["-c", source, *arguments], ranks=ranks, **options)

    yield call
    assert members(tmp_path / "launch") == set()
    assert not (tmp_path / "launch").exists()


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)
    return result


def process_file(pid, name):
    """Return a file of /proc/<pid>, split at its zero bytes; an empty list if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def rank_pids(run_dir, needle):
    """Return the pids of a launch that run `needle` themselves, without guards and msrun."""
    return [pid for pid in members(run_dir / "launch") if process_file(pid, "cmdline")[1:3] == ["-c", needle]]


def test_one_rank_writes_to_its_log_only(run, tmp_path, capfd):
    run("import sys; print('out'); print('err', file=sys.stderr); assert sys.argv[1] == 'x'", "x")
    assert (tmp_path / "logs/rank_0.log").read_text().split() == ["out", "err"]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["rank_0.log"]
    assert capfd.readouterr() == ("", "")


def test_each_of_two_ranks_and_the_scheduler_have_a_log(run, tmp_path):
    run(AS_RANK + "print('rank', rank)", ranks=2)
    for name, rank in {"rank_0": "0", "rank_1": "1", "scheduler": "sched"}.items():
        assert (tmp_path / f"logs/{name}.log").read_text() == f"rank {rank}\n"
    assert len(list((tmp_path / "logs").iterdir())) == 4  # and msrun.log


def test_sigkill_of_one_of_two_ranks_in_a_collective_job_ends_it_at_once(run, tmp_path):
    log = tmp_path / "logs/rank_1.log"
    killed_at = []

    def poll():
        if not killed_at and log.exists() and "sum [3.]" in log.read_text():
            ranks = rank_pids(tmp_path, ALL_REDUCE)
            (victim,) = [pid for pid in ranks if "RANK_ID=1" in process_file(pid, "environ")]
            os.kill(victim, signal.SIGKILL)
            killed_at.append(time.monotonic())

    with pytest.raises(RanksFailed, match=r"rank 1 was killed by SIGKILL \(out of memory\? see dmesg\)") as caught:
        run(ALL_REDUCE, ranks=2, poll=poll, python=sys.executable)
    assert time.monotonic() - killed_at[0] < 5  # msrun alone: 35 s
    assert (caught.value.rank, caught.value.returncode, caught.value.log_path) == (1, -signal.SIGKILL, log)
    assert "sum [3.]" in str(caught.value)
    assert "sum [3.]" in (tmp_path / "logs/rank_0.log").read_text()


@pytest.mark.parametrize(
    ("ranks", "source", "process", "message"),
    [
        pytest.param(1, "print('a reason'); raise SystemExit(3)", "rank 0", "exited with code 3", id="exit code"),
        pytest.param(
            1, "import os; print('a reason'); os.kill(os.getpid(), 11)", "rank 0", "killed by SIGSEGV", id="signal"
        ),
        pytest.param(
            2,
            AS_RANK + "print('a reason')\nif rank == '1': sys.exit(3)\ntime.sleep(100)",
            "rank 1",
            "exited with code 3",
            id="the other rank hangs",
        ),
        pytest.param(
            2,
            # msrun checks the ranks once a second in their order, and would report rank 0
            AS_RANK + "print('a reason')\ntime.sleep({'0': 0.2, '1': 0}.get(rank, 100))\nsys.exit(4)",
            "rank 1",
            "exited with code 4",
            id="the other rank fails a moment later",
        ),
        pytest.param(
            2,
            AS_RANK + "print('a reason')\nif rank == 'sched': os.kill(os.getpid(), 9)\ntime.sleep(100)",
            "scheduler",
            "killed by SIGKILL",
            id="scheduler",
        ),
        pytest.param(
            2,
            AS_RANK + "print('a reason')\nif rank == '1': os.kill(os.getppid(), 9)\ntime.sleep(100)",
            "rank 1",
            "was killed together with its guard",
            id="guard",
        ),
    ],
)
def test_first_failure_is_named(run, ranks, source, process, message):
    start = time.monotonic()
    with pytest.raises(RanksFailed, match=message) as caught:
        run(source, ranks=ranks)
    assert time.monotonic() - start < 15
    assert caught.value.process == process
    assert str(caught.value).endswith("ends:\na reason")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_sigkill_of_msrun_is_named(run, tmp_path):
    def poll():
        for pid in members(tmp_path / "launch"):
            program = process_file(pid, "cmdline")[1:2]
            if rank_pids(tmp_path, SLEEP) and any("msrun" in part for part in program):
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(RanksFailed, match="msrun was killed by SIGKILL"):
        run(SLEEP, ranks=2, poll=poll)


def test_a_guard_that_ends_while_its_record_is_read_has_not_vanished(tmp_path, monkeypatch):
    record = tmp_path / "rank_0.json"
    write_json(record, {"guard": 1, "guard_started": "1"})

    def started(_pid):
        write_json(record, {"returncode": 0, "ended": 1.0})

    monkeypatch.setattr(launch, "started", started)
    assert launch._ends(tmp_path) == {"rank_0": 0}


@pytest.mark.parametrize("ranks", [1, 2])
def test_input_error_of_a_rank_is_the_launchers(run, ranks):
    source = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from datasets.base.errors import InputError
from mae.launch.ranks import rank_main
def body():
    raise InputError("a.yaml", expected="a number", found="'x'", todo="correct it")
rank_main(body)
"""
    with pytest.raises(InputError) as caught:
        run(source, ranks=ranks)
    assert str(caught.value) == "a.yaml: expected a number, found 'x'; correct it"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_rank_main_ends_an_exception_at_once_with_its_traceback(run):
    source = f"""
import atexit, sys, time
sys.path.insert(0, {str(ROOT)!r})
from mae.launch.ranks import rank_main
atexit.register(time.sleep, 100)  # as MindSpore's own exit handler does
rank_main(lambda: 1 / 0)
"""
    with pytest.raises(RanksFailed, match="rank 0 exited with code 1") as caught:
        run(source)
    assert caught.value.tail.endswith("ZeroDivisionError: division by zero")


def test_rank_main_returns_when_the_body_does():
    done = []
    rank_main(lambda: done.append(1))
    assert done == [1]


@pytest.mark.parametrize("raised", [ValueError("bad metrics"), KeyboardInterrupt()], ids=["exception", "interrupt"])
def test_what_poll_raises_ends_the_tree(run, tmp_path, raised):
    def poll():
        if rank_pids(tmp_path, SLEEP):
            raise raised

    with pytest.raises(type(raised)):
        run(SLEEP, poll=poll)


def test_ranks_have_a_grace_to_end_and_no_more(run, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 1.0)
    source = AS_RANK + (
        "signal.signal(signal.SIGTERM, lambda *_: print('asked to end', flush=True))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.1)"
    )

    def poll():
        if all(
            (log := tmp_path / f"logs/rank_{rank}.log").exists() and "ready" in log.read_text() for rank in range(2)
        ):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (what is tested is the log)
        run(source, ranks=2, poll=poll)
    assert [(tmp_path / f"logs/rank_{rank}.log").read_text().split("\n")[1] for rank in range(2)] == [
        "asked to end"
    ] * 2


def test_descendants_in_sessions_of_their_own_end_too(run):
    source = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
    run(source)  # the fixture looks


def test_hang_is_an_error(run, tmp_path):
    log = tmp_path / "logs/rank_0.log"
    source = "import time\nfor step in range(5): print(step, flush=True); time.sleep(0.3)\ntime.sleep(100)"
    start = time.monotonic()
    with pytest.raises(RanksFailed, match=re.escape("the ranks made no progress for 1 s")) as caught:
        run(source, poll=lambda: log.stat().st_size, hang_seconds=1.0)
    assert 2 < time.monotonic() - start < 8  # five steps were progress
    assert caught.value.rank is None
    assert caught.value.tail.endswith("4")


LAUNCHER = """
import sys
from pathlib import Path
from mae.launch.ranks import run_ranks
run_dir = Path(sys.argv[1])
run_ranks(["-c", sys.argv[3]], ranks=int(sys.argv[2]), log_dir=run_dir / "logs", run_dir=run_dir, python=sys.argv[4])
"""


def start_launcher(run_dir, ranks, python):
    command = [sys.executable, "-c", LAUNCHER, run_dir, str(ranks), SLEEP, python]
    launcher = subprocess.Popen(command, cwd=ROOT, preexec_fn=_as_from_a_terminal)
    wait_until(lambda: len(rank_pids(run_dir, SLEEP)) >= (ranks if ranks == 1 else ranks + 1))
    return launcher


def _as_from_a_terminal():
    """Accept SIGINT, which a process started in the background ignores, and its children too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_killed_launcher_leaves_nothing(tmp_path, run, light_python, ranks, number):
    launcher = start_launcher(tmp_path, ranks, light_python)
    launcher.send_signal(number)
    assert launcher.wait(20) == -number
    wait_until(lambda: not members(tmp_path / "launch"), seconds=2)
    run("print('again')")  # the dead launcher no longer owns the run directory


def test_two_launches_in_one_run_directory_are_an_error(tmp_path, run, light_python):
    launcher = start_launcher(tmp_path, 1, light_python)
    with pytest.raises(InputError, match=f"found one by process {launcher.pid}"):
        run(SLEEP)
    assert rank_pids(tmp_path, SLEEP)  # the first continues
    launcher.terminate()
    launcher.wait(20)
    reap(tmp_path)


def test_leftovers_are_reaped_and_strangers_are_not(tmp_path, run):
    """The tree of a dead launcher, whose pid now belongs to another process."""
    mark = {**os.environ, LAUNCH_DIR: str(tmp_path / "launch")}
    leftover = subprocess.Popen([sys.executable, "-c", SLEEP], env=mark, start_new_session=True)
    stranger = subprocess.Popen([sys.executable, "-c", SLEEP])
    try:
        write_json(tmp_path / "launch/launcher.json", {"pid": stranger.pid, "started": "1"})
        run("print('ready')")
        assert leftover.wait(5) == -signal.SIGTERM
        assert stranger.poll() is None
    finally:
        leftover.kill()
        stranger.kill()
        stranger.wait()


def test_reap_ends_a_process_that_ignores_sigterm(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.5)
    source = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); " + SLEEP
    leftover = subprocess.Popen(
        [sys.executable, "-c", source], env={**os.environ, LAUNCH_DIR: str(tmp_path / "launch")}, stdout=subprocess.PIPE
    )
    leftover.stdout.readline()
    reap(tmp_path)
    assert leftover.wait(1) == -signal.SIGKILL
    leftover.stdout.close()


def test_ranks_started_by_a_thread(run):
    """Prefect runs tasks in threads, and PR_SET_PDEATHSIG kills a child when the thread that started it ends."""
    failures = []

    def body():
        try:
            run("import time; time.sleep(0.3)")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert not failures


@pytest.mark.parametrize(
    ("ranks", "own", "name", "value"),
    [
        pytest.param(1, {}, "OMP_NUM_THREADS", str(CORES), id="one rank has all cores"),
        pytest.param(CORES, {}, "OPENBLAS_NUM_THREADS", "1", id="a rank per core"),
        pytest.param(4 * CORES, {}, "OMP_NUM_THREADS", "1", id="at least one thread"),
        pytest.param(4, {"OMP_NUM_THREADS": "3"}, "OMP_NUM_THREADS", "3", id="as this process has it"),
        pytest.param(2, {}, "GLOG_v", "3", id="quiet MindSpore"),
        pytest.param(2, {"GLOG_v": "1"}, "GLOG_v", "1", id="verbose MindSpore"),
    ],
)
def test_environment_of_the_ranks(monkeypatch, tmp_path, ranks, own, name, value):
    for variable in (*launch.THREAD_VARIABLES, "GLOG_v"):
        monkeypatch.delenv(variable, raising=False)
    for variable, text in own.items():
        monkeypatch.setenv(variable, text)
    assert launch._environment(ranks=ranks, launch_dir=tmp_path, interpreter=sys.executable)[name] == value


def test_this_processs_environment_reaches_a_rank(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "600")
    run("import os; print(os.environ['HCCL_CONNECT_TIMEOUT'])")
    assert (tmp_path / "logs/rank_0.log").read_text() == "600\n"


def test_device_reads_the_variable_that_the_launcher_sets():
    assert context.LAUNCH_DIR == LAUNCH_DIR


def test_a_second_launch_keeps_the_first_ones_logs(run, tmp_path):
    for text in ("first", "second", "third"):
        run(f"print('{text}')")
    logs = {str(path.relative_to(tmp_path / "logs")): path.read_text() for path in tmp_path.glob("logs/**/*.log")}
    assert logs == {"rank_0.log": "third\n", "attempt-1/rank_0.log": "first\n", "attempt-2/rank_0.log": "second\n"}


def msrun_beside(tmp_path):
    python = tmp_path / "bin/python3.9"
    python.parent.mkdir()
    for path in (python, python.with_name("msrun")):
        path.touch(mode=0o755)
    return str(python)


@pytest.mark.parametrize(
    "rank_table", [None, Path("/table/hccl_8p.json")], ids=["without rank table", "with rank table"]
)
def test_msrun_command(tmp_path, rank_table):
    python = msrun_beside(tmp_path)
    command = msrun_command(
        ["-m", "mae.training.engine", "runs/a"],
        ranks=8,
        port=8118,
        log_dir=Path("/logs"),
        python=python,
        rank_table=rank_table,
    )
    table = f"--rank_table_file {rank_table} " if rank_table else ""
    assert " ".join(command) == (
        f"{python} {tmp_path}/bin/msrun --worker_num 8 --local_worker_num 8 --master_addr 127.0.0.1 --master_port 8118 "
        f"--join True --cluster_time_out 300 --log_dir /logs --worker_log_name rank --tail_worker_log 8 {table}"
        f"{ROOT}/mae/launch/process_tree.py supervise {python} -m mae.training.engine runs/a"
    )


def test_an_interpreter_without_msrun_is_an_input_error(tmp_path, run):
    python = msrun_beside(tmp_path)
    Path(python).with_name("msrun").unlink()
    with pytest.raises(InputError, match=f"msrun: expected msrun .*; install mindspore for {python}"):
        run(SLEEP, ranks=2, python=python)


def test_an_interpreter_that_is_not_there_is_an_input_error(run):
    with pytest.raises(InputError, match=r"device\.python: expected a Python interpreter, found '/no/python'"):
        run(SLEEP, python="/no/python")
