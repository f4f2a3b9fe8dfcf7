"""Calls in worker processes, really killed where the test says so."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError

from datasets.base.parallel import apart, in_processes


def square(value):
    return value * value


def process(_):
    time.sleep(0.2)
    return os.getpid()


def fail_at_three(value):
    if value == 3:
        raise ValueError("three")
    return value


def kill_itself(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_in_the_order_of_the_inputs():
    assert list(in_processes(square, range(50), workers=2)) == [n * n for n in range(50)]


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (2, 2)])
def test_as_many_processes_work_as_asked_for(workers, processes):
    pids = set(in_processes(process, range(6), workers=workers))
    assert len(pids) == processes
    assert (os.getpid() in pids) == (workers == 1)


def test_an_error_of_a_call_is_raised_here():
    with pytest.raises(ValueError, match="three"):
        list(in_processes(fail_at_three, range(6), workers=2))
    assert list(in_processes(square, [2], workers=2)) == [4]


def test_a_killed_worker_is_an_error_and_the_next_call_works():
    with pytest.raises(TerminatedWorkerError):
        list(in_processes(kill_itself, range(4), workers=2))
    assert list(in_processes(square, range(4), workers=2)) == [0, 1, 4, 9]


@pytest.mark.filterwarnings("ignore:.*tasks have been successfully executed")
def test_inputs_are_taken_as_they_are_needed():
    taken = []
    results = in_processes(process, (taken.append(n) or n for n in range(1000)), workers=2)
    next(results)
    assert len(taken) < 50  # a call takes 0.2 s
    results.close()


@pytest.mark.parametrize("inputs", [1, 10_000], ids=["idle", "busy"])
def test_workers_end_with_a_killed_parent_whose_script_has_no_main_guard(tmp_path, inputs):
    """What waits for the end of the parent's output, as Prefect's worker does, waits for its workers too."""
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from datasets.base.parallel import apart, in_processes\n"
        "from tests.datasets.base.test_parallel import process\n"
        "apart(process, 0)\n"
        f"for _ in in_processes(process, range({inputs}), workers=2): print('one', flush=True)\n"
        "time.sleep(1000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout.readline() == b"one\n"
        parent.kill()
        parent.communicate(timeout=60)  # a worker that lives on keeps the pipe open for joblib's 300 s


def test_threads_share_the_worker_processes():
    list(in_processes(square, range(4), workers=2))  # the other pool, whose workers are not these
    with ThreadPoolExecutor(6) as threads:
        pids = set(threads.map(lambda n: apart(process, n), range(12)))
    assert 1 <= len(pids) <= len(os.sched_getaffinity(0))
    assert os.getpid() not in pids
    assert list(in_processes(square, range(4), workers=2)) == [0, 1, 4, 9]


def test_a_killed_worker_fails_the_calls_under_way_and_the_next_call_works():
    with pytest.raises(TerminatedWorkerError):
        apart(kill_itself, 0)
    assert apart(square, 3) == 9
    with pytest.raises(ValueError, match="three"):
        apart(fail_at_three, 3)


def test_a_process_that_may_have_no_children_calls_the_function_itself():
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # its workers are daemonic, as Dask's are
        assert pool.apply(a_call_apart_is_made_here) is True


def a_call_apart_is_made_here():
    return apart(process, 0) == os.getpid()
