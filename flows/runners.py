"""Where the tasks of the data stages run: in threads of this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from datasets.base.errors import InputError
from mae.config.sections import DataConfig

P = ParamSpec("P")
R = TypeVar("R")


def spread(subflow: Flow[P, R], data: DataConfig) -> Flow[P, R]:
    """The same stage with its mapped tasks where `data.dask` says.

    Raises:
        InputError: a cluster is named, and the extra that knows Dask is not installed.
    """
    return subflow.with_options(task_runner=task_runner(data.dask))


def task_runner(dask: str | None) -> TaskRunner[Any]:
    """As many threads as cores, or the cluster whose scheduler has this address.

    A cluster's workers need this package and the same paths to the images and the workspace.
    """
    if dask is None:
        return ThreadPoolTaskRunner(max_workers=len(os.sched_getaffinity(0)))
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError:
        todo = "run `pip install -e '.[dask]' -c constraints.txt`, or leave data.dask out to work on this machine"
        raise InputError("data.dask", expected="an installed prefect-dask", found="none", todo=todo) from None
    return DaskTaskRunner(address=dask)


def results(futures: Sequence[PrefectFuture[R]]) -> list[R]:
    """The results of mapped tasks, once all have ended; raises what the first failed one did."""
    wait(list(futures))
    return [future.result() for future in futures]
