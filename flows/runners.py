"""Run the tasks of the data stages in threads of this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from datasets.base.errors import InputError
from mae.config import DataConfig

P = ParamSpec("P")
R = TypeVar("R")


def spread(subflow: Flow[P, R], data: DataConfig) -> Flow[P, R]:
    """Return the stage with its mapped tasks on the Dask cluster `data.dask`, or else on one thread per core.

    The cluster's workers need this package, and the images and the workspace under the same paths.

    Raises:
        InputError: a cluster is named, but prefect-dask is not installed.
    """
    if data.dask is None:
        threads: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=len(os.sched_getaffinity(0)))
        return subflow.with_options(task_runner=threads)
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError:
        todo = "run `pip install -e '.[dask]' -c .venv/constraints.txt`, or leave data.dask out to work on this machine"
        raise InputError("data.dask", expected="an installed prefect-dask", found="none", todo=todo) from None
    return subflow.with_options(task_runner=DaskTaskRunner(address=data.dask))


def results(futures: Sequence[PrefectFuture[R]]) -> list[R]:
    """Wait until all mapped tasks have ended; return their results, or raise the error of the first that failed."""
    wait(list(futures))
    return [future.result() for future in futures]
