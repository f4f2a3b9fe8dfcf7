"""Calls of functions in worker processes, one process per core."""

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

    The processes stay for the next call, which saves importing their modules again. At most twice as many inputs as
    workers are taken ahead of the results. The caller's script needs no `if __name__ == "__main__"`. A process that may
    have no children, such as a Dask worker, makes the calls itself, one after the other.

    Args:
        function: a function of a module, not of a script. Its argument and result can be pickled.
        workers: number of processes; default: one per core that this process may use. With 1 this process makes the
            calls itself.

    Raises:
        What a call raises; joblib's TerminatedWorkerError if a worker process was killed.
    """
    count = workers or len(os.sched_getaffinity(0))
    pool = joblib.Parallel(count, return_as="generator", batch_size=1, pre_dispatch="2*n_jobs", **_initializer())
    yield from pool(joblib.delayed(function)(value) for value in inputs)


def apart(function: Callable[[T], R], value: T) -> R:
    """Call `function` once in a worker process and return its result; for callers that run in several threads.

    As many calls run at once as there are cores, and the others wait. The rules of `in_processes` hold. If a worker is
    killed, every running call raises joblib's TerminatedWorkerError. Later calls work again.
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
    """End this worker soon after the process `parent` was killed, also while the worker is idle."""
    process_executor._MAX_MEMORY_LEAK_SIZE = 1 << 40  # else loky takes an import of MindSpore for a memory leak
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)
