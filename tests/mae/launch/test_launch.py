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

from datasets.base.errors import InputError
from datasets.base.files import write_json
from datasets.base.processes import is_running, started, with_variable
from mae.device import context
from mae.launch import ranks as launch
from mae.launch.ranks import LAUNCH_DIR, RanksFailed, rank_main, reap, run_child, run_ranks
from tests.mae.launch.stages import free_address

ROOT = Path(__file__).parents[3]
CORES = len(os.sched_getaffinity(0))
STAGES = str(Path(__file__).with_name("stages.py"))
GUARD, SCHEDULER = launch.GUARD, launch.SCHEDULER

SLEEP = "import time; time.sleep(100)"
VARIABLES = {"DEVICE_ID", "HCCL_CONNECT_TIMEOUT", "RANK_ID", "RANK_SIZE", "RANK_TABLE_FILE"}
VARIABLES |= {"MAE_LOCAL_RANK", "MAE_LOCAL_RANKS"}
VARIABLES |= {"MS_NODE_ID", "MS_ROLE", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM"}
AS_RANK = """
import os, signal, sys, time
rank = os.environ["RANK_ID"]
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


@pytest.fixture(autouse=True)
def light_scheduler(monkeypatch):
    """Tests with light ranks need no MindSpore in the scheduler either."""
    monkeypatch.setattr(launch, "SCHEDULER", STAGES)


@pytest.fixture
def run(tmp_path):
    """Call run_ranks on Python source. Afterwards check that no process and no file of the launch is left."""

    def call(source, *arguments, ranks=1, **options):
        options = {"log_dir": tmp_path / "logs", "run_dir": tmp_path, "poll_seconds": 0.1, **options}
        run_ranks(["-c", source, *arguments], ranks=ranks, **options)

    yield call
    assert members(tmp_path) == set()
    assert not (tmp_path / "launch").exists()


def members(run_dir):
    return with_variable(LAUNCH_DIR, str(run_dir / "launch"))


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
    """Return the pids of a launch's ranks that run `needle`."""
    return [pid for pid in members(run_dir) if process_file(pid, "cmdline")[1:3] == ["-c", needle]]


def test_one_rank_writes_to_its_log_only(run, tmp_path, capfd):
    run("import sys; print('out'); print('err', file=sys.stderr); assert sys.argv[1] == 'x'", "x")
    assert (tmp_path / "logs/rank_0.log").read_text().split() == ["out", "err"]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["rank_0.log"]
    assert capfd.readouterr() == ("", "")


def test_each_of_two_ranks_and_the_scheduler_have_a_log(run, tmp_path):
    run(AS_RANK + "print('rank', rank)", ranks=2, scheduler="127.0.0.1:8118")
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs == {"rank_0.log": "rank 0\n", "rank_1.log": "rank 1\n", "scheduler.log": "serving\n"}


def test_sigkill_of_one_of_two_ranks_in_a_collective_job_ends_it_at_once(run, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "SCHEDULER", SCHEDULER)
    log = tmp_path / "logs/rank_1.log"
    killed_at = []

    def poll():
        if not killed_at and log.exists() and "sum [3.]" in log.read_text():
            ranks = rank_pids(tmp_path, ALL_REDUCE)
            (victim,) = [pid for pid in ranks if "RANK_ID=1" in process_file(pid, "environ")]
            os.kill(victim, signal.SIGKILL)
            killed_at.append(time.monotonic())

    with pytest.raises(RanksFailed, match=r"rank 1 was killed by SIGKILL \(out of memory\? see dmesg\)") as caught:
        run(ALL_REDUCE, ranks=2, scheduler=free_address(), poll=poll)
    assert time.monotonic() - killed_at[0] < 5
    assert f"its log is {log}, and ends:" in str(caught.value)
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
            AS_RANK + "print('a reason')\ntime.sleep(0.2 * (rank == '0'))\nsys.exit(4)",
            "rank 1",
            "exited with code 4",
            id="the other rank fails a moment later",
        ),
    ],
)
def test_first_failure_is_named(run, ranks, source, process, message):
    start = time.monotonic()
    with pytest.raises(RanksFailed, match=message) as caught:
        run(source, ranks=ranks)
    assert time.monotonic() - start < 15
    assert str(caught.value).startswith(process)
    assert str(caught.value).endswith("ends:\na reason")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


START = """
import sys
from pathlib import Path
from mae.launch import ranks
folder, ranks.GUARD, ranks.SCHEDULER = Path(sys.argv[1]), sys.argv[2], sys.argv[2]
options = {"scheduler": "127.0.0.1:8118", "log_dir": folder / "logs", "run_dir": folder}
ranks.run_ranks([sys.argv[2], "rank"], ranks=2, **options)
"""


@pytest.mark.parametrize("victim", ["launcher", "rank 0", "rank 1", "scheduler"])
@pytest.mark.parametrize("stage", ["guard", "exec", "running"])
def test_killing_any_process_at_any_stage_leaves_none(tmp_path, stage, victim):
    environment = {**os.environ, "STAGE": stage, "GUARD": GUARD}
    command = [sys.executable, "-c", START, str(tmp_path), STAGES]
    launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    for name in ("rank 0", "rank 1", "scheduler"):
        wait_until((tmp_path / "launch" / f"{name} at {stage}").exists)
    pids = {name_of(pid): pid for pid in members(tmp_path)} | {"launcher": launcher.pid}
    os.kill(pids[victim], signal.SIGKILL)
    killed_at = time.monotonic()
    error = launcher.communicate(timeout=20)[1]
    wait_until(lambda: not members(tmp_path), seconds=3)
    assert time.monotonic() - killed_at < 10
    if victim == "launcher":
        assert launcher.returncode == -signal.SIGKILL
    else:
        assert f"RanksFailed: {victim} was killed by SIGKILL" in error
        assert not (tmp_path / "launch").exists()


AT_STAGE = """
import os, sys, time
from pathlib import Path
folder, stage = Path(os.environ["MAE_LAUNCH_DIR"]), sys.argv[1]
def reached(name):
    Path(folder, "rank " + os.environ["RANK_ID"] + " at " + name).touch()
reached("import")
from mindspore import communication, ops, set_device
set_device("CPU")
if stage == "init" and os.environ["RANK_ID"] == "1":
    time.sleep(100)
reached("init")
communication.init()
reached("joined")
time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "victim"),
    [("import", "rank 0"), ("init", "rank 0"), ("init", "scheduler"), ("joined", "scheduler"), ("joined", "rank 1")],
)
def test_killing_a_real_process_at_a_stage_of_its_start(run, tmp_path, monkeypatch, stage, victim):
    """Ranks and scheduler import MindSpore. At "init" rank 0 and the scheduler wait for rank 1."""
    monkeypatch.setattr(launch, "SCHEDULER", SCHEDULER)
    killed_at = []

    def poll():
        there = [rank for rank in range(2) if (tmp_path / "launch" / f"rank {rank} at {stage}").exists()]
        if not killed_at and there == ([0] if stage == "init" else [0, 1]):
            time.sleep(1)
            pids = {name_of(pid): pid for pid in members(tmp_path)}
            os.kill(pids[victim], signal.SIGKILL)
            killed_at.append(time.monotonic())

    with pytest.raises(RanksFailed, match=f"^{victim} was killed by SIGKILL"):
        run(AT_STAGE, stage, ranks=2, scheduler=free_address(), poll=poll)
    assert time.monotonic() - killed_at[0] < 10


def name_of(pid):
    variables = process_file(pid, "environ")
    if "MS_ROLE=MS_SCHED" in variables:
        return "scheduler"
    return next("rank " + text[8:] for text in variables if text.startswith("RANK_ID="))


INPUT_ERROR = """
from datasets.base.errors import InputError
from mae.launch.ranks import rank_main
def body():
    raise InputError("a.yaml", expected="a number", found="'x'", todo="correct it")
rank_main(body)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_input_error_of_a_rank_is_the_launchers(run, ranks):
    with pytest.raises(InputError) as caught:
        run(INPUT_ERROR, ranks=ranks)
    assert str(caught.value) == "a.yaml: expected a number, found 'x'; correct it"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_rank_main_ends_an_exception_at_once_with_its_traceback(run):
    source = """
import atexit, time
from mae.launch.ranks import rank_main
atexit.register(time.sleep, 100)  # as MindSpore's own exit handler does
rank_main(lambda: 1 / 0)
"""
    with pytest.raises(RanksFailed, match="rank 0 exited with code 1") as caught:
        run(source)
    assert str(caught.value).endswith("ZeroDivisionError: division by zero")


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
    assert str(caught.value).endswith("\n4")


LAUNCHER = """
import sys
from pathlib import Path
from mae.launch import ranks
folder, ranks.SCHEDULER = Path(sys.argv[1]), sys.argv[4]
ranks.run_ranks(["-c", sys.argv[3]], ranks=int(sys.argv[2]), log_dir=folder / "logs", run_dir=folder)
"""


def start_launcher(run_dir, ranks):
    command = [sys.executable, "-c", LAUNCHER, run_dir, str(ranks), SLEEP, STAGES]
    launcher = subprocess.Popen(command, cwd=ROOT, preexec_fn=_as_from_a_terminal)
    wait_until(lambda: len(rank_pids(run_dir, SLEEP)) == ranks)
    return launcher


def _as_from_a_terminal():
    """Accept SIGINT, which a process started in the background ignores, and its children too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_killed_launcher_leaves_nothing(tmp_path, run, ranks, number):
    launcher = start_launcher(tmp_path, ranks)
    launcher.send_signal(number)
    assert launcher.wait(20) == -number
    wait_until(lambda: not members(tmp_path), seconds=2)
    run("print('again')")  # the dead launcher no longer owns the run directory


def test_two_launches_in_one_run_directory_are_an_error(tmp_path, run):
    launcher = start_launcher(tmp_path, 1)
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
    assert launch._environment(ranks=ranks, launch_dir=tmp_path)[name] == value


PRINT = f"import os; print(*[f'{{n}}={{v}}' for n, v in sorted(os.environ.items()) if n in {sorted(VARIABLES)}])"


@pytest.mark.parametrize(
    ("chosen", "timeout"),
    [pytest.param({}, 1800, id="default"), pytest.param({"connect_seconds": 300}, 300, id="chosen")],
)
def test_a_rank_on_ascend_reads_the_table(run, tmp_path, monkeypatch, locks, chosen, timeout):
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "600")  # as `import mindspore` does
    table = "print(open(os.environ['RANK_TABLE_FILE']).read())"
    run(
        f"{PRINT}; {table}",
        ranks=2,
        first=2,
        total=4,
        devices=[6, 7],
        rank_table=b"the table",
        **chosen,
    )
    for rank, device in {2: 6, 3: 7}.items():
        assert (tmp_path / f"logs/rank_{rank}.log").read_text().splitlines() == [
            f"DEVICE_ID={device} HCCL_CONNECT_TIMEOUT={timeout} MAE_LOCAL_RANK={rank - 2} MAE_LOCAL_RANKS=2 "
            f"RANK_ID={rank} RANK_SIZE=4 RANK_TABLE_FILE={tmp_path}/launch-2/rank_table.json",
            "the table",
        ]
    assert len(list((tmp_path / "logs").iterdir())) == 2, "no scheduler"
    assert not list(tmp_path.glob("launch*"))


def test_ranks_on_cpus_read_no_table(run, tmp_path):
    run(PRINT, ranks=2, rank_table=b"a local table")
    assert (tmp_path / "logs/rank_1.log").read_text() == "MAE_LOCAL_RANK=1 MAE_LOCAL_RANKS=2 RANK_ID=1\n"


@pytest.mark.parametrize(("first", "logs"), [(0, ["rank_0", "scheduler"]), (1, ["rank_1"])])
def test_servers_share_a_job_on_cpus(run, tmp_path, monkeypatch, first, logs):
    monkeypatch.setenv("RANK_TABLE_FILE", "/of/another/job.json")
    run(PRINT, ranks=1, first=first, total=2, scheduler="10.0.0.1:8118")
    assert sorted(path.stem for path in (tmp_path / "logs").iterdir()) == logs
    assert (tmp_path / f"logs/rank_{first}.log").read_text() == (
        f"MAE_LOCAL_RANK=0 MAE_LOCAL_RANKS=1 MS_NODE_ID={first} MS_ROLE=MS_WORKER MS_SCHED_HOST=10.0.0.1 "
        f"MS_SCHED_PORT=8118 MS_WORKER_NUM=2 RANK_ID={first}\n"
    )


def test_ranks_run_from_any_directory(run, tmp_path, monkeypatch):
    (tmp_path / "elsewhere/datasets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run("import mae.config, datasets.base, os; print(mae.__file__, os.getcwd())")
    assert (tmp_path / "logs/rank_0.log").read_text().split() == [f"{ROOT}/mae/__init__.py", str(Path.cwd())]


def test_device_reads_the_variables_that_the_launcher_sets():
    for name in ("LAUNCH_DIR", "LOCAL_RANK", "LOCAL_RANKS"):
        assert getattr(context, name) == getattr(launch, name)


def test_start_times_that_differ_by_a_few_ticks_are_one_process():
    """A process under user-mode emulation reads another start time for itself than other processes do."""
    now = int(started(os.getpid()))
    assert is_running(os.getpid(), str(now - 5))
    assert is_running(os.getpid(), str(now + 5))
    assert not is_running(os.getpid(), str(now - 500))


def test_a_second_launch_keeps_the_first_ones_logs(run, tmp_path):
    for text in ("first", "second", "third"):
        run(f"print('{text}')")
    logs = {str(path.relative_to(tmp_path / "logs")): path.read_text() for path in tmp_path.glob("logs/**/*.log")}
    assert logs == {"rank_0.log": "third\n", "attempt-1/rank_0.log": "first\n", "attempt-2/rank_0.log": "second\n"}


def test_an_interpreter_that_is_not_there_is_an_input_error(run):
    with pytest.raises(InputError, match=r"device\.python: expected a Python interpreter, found '/no/python'"):
        run(SLEEP, python="/no/python")


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Call run_child on Python source."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def call(source, *arguments, **options):
        (tmp_path / "made_child.py").write_text(source)
        run_child("made_child", arguments, log_dir=tmp_path / "logs", owner="a test", **options)

    return call


def test_lines_of_a_child_arrive_while_it_runs(child, tmp_path):
    lines, go = [], tmp_path / "go"

    def line(text):
        lines.append(text)
        go.touch()

    source = "import os, sys, time\nprint(sys.argv[1], flush=True)\n"
    source += "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\nprint('done')"
    child(source, str(go), report_line=line)
    assert lines == [str(go), "done"]


def test_children_do_not_communicate(child, tmp_path, locks):
    child(PRINT, ranks=2, devices=[4, 5])
    for rank in range(2):
        log = (tmp_path / f"logs/rank_{rank}.log").read_text()
        assert log == f"DEVICE_ID={4 + rank} MAE_LOCAL_RANK={rank} MAE_LOCAL_RANKS=2 RANK_ID={rank}\n"
    child(PRINT, ranks=2)
    assert (tmp_path / "logs/rank_1.log").read_text() == "MAE_LOCAL_RANK=1 MAE_LOCAL_RANKS=2 RANK_ID=1\n"
    assert not (tmp_path / "logs/scheduler.log").exists()


def test_input_error_of_a_child_arrives(child):
    with pytest.raises(InputError, match=r"a\.yaml: expected a number, found 'x'; correct it"):
        child(INPUT_ERROR)
