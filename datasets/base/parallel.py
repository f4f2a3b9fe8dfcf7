"""Functions in other processes: as many as there are cores."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable, Optional, TypeVar

import joblib
from joblib.externals.loky import ProcessPoolExecutor, process_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

T = TypeVar("T")
R = TypeVar("R")

_PARENT_SECONDS = 0.5  # how long a worker may outlive the process that gave it work
_IDLE_SECONDS = 300  # joblib's own choice for the processes of `in_processes`
_pool: Optional[ProcessPoolExecutor] = None  # of `apart`; joblib's reusable one serves one caller at a time
_pool_lock = threading.Lock()


def in_processes(function: Callable[[T], R], inputs: Iterable[T], *, workers: Optional[int] = None) -> Iterator[R]:
    """Call `function` on every input in worker processes and yield the results in the order of the inputs.

    The processes are kept for the next call, so that what they imported is imported once. At most twice as many inputs
    as there are workers are under way, so inputs do not pile up. No `if __name__ == "__main__"` is needed
    in the caller's script. Inside a process that may have no children, such as a Dask worker, the calls are made in
    that process, one after the other.

    Args:
        function: of a module, not of a script; what it takes and returns can be pickled.
        workers: processes; default: one per core that this process may use; 1: none, the calls are made here.

    Raises:
        Whatever a call raises; joblib's TerminatedWorkerError where a worker process was killed.
    """
    count = workers or len(os.sched_getaffinity(0))
    pool = joblib.Parallel(count, return_as="generator", batch_size=1, pre_dispatch="2*n_jobs", **_initializer())
    yield from pool(joblib.delayed(function)(value) for value in inputs)


def apart(function: Callable[[T], R], value: T) -> R:
    """Call `function` once in a worker process and wait: for callers that are threads themselves, one call each.

    As many calls are made at once as there are cores; the others wait. The rules are those of `in_processes`. A worker
    that was killed fails every call that is under way, with joblib's TerminatedWorkerError; the next calls work.
    """
    global _pool
    if multiprocessing.current_process().daemon:
        return function(value)
    with _pool_lock:
        if _pool is None:
            _pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)), timeout=_IDLE_SECONDS, **_initializer())
        pool = _pool
    try:
        return pool.submit(function, value).result()
    except BrokenProcessPool:
        with _pool_lock:
            _pool = None if _pool is pool else _pool
        raise


def _initializer() -> dict[str, Any]:
    return {"initializer": _watch, "initargs": (os.getpid(),)}


def _watch(parent: int) -> None:
    """Make this worker end soon after `parent` was killed, also while it has no work: nobody waits for a result."""
    process_executor._MAX_MEMORY_LEAK_SIZE = 1 << 40  # MindSpore, once a call imports it, is no leak
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)
