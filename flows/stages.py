"""Each stage as a subflow, which the UI draws as one box with its tasks inside.

Prefect stores the subflows' results. A retried parent run takes a stored result instead of running the stage again,
after the stage's check has found the files that the result names.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, flow, runtime
from prefect.futures import PrefectFuture, wait
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

import tasks.evaluate
import tasks.predict
import tasks.rank_table
import tasks.report
import tasks.sample_data
import tasks.shard
import tasks.train
import tasks.unpack
import tasks.validate
from datasets import sample, unpacking
from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import StageResult
from datasets.manifest import MANIFEST
from datasets.records import Records
from datasets.sample import SampleData
from datasets.sharding import sole_writer
from datasets.unpacking import Unpacked
from datasets.validation import Validation
from mae.cluster import RankTableFile
from mae.config import Config, DataConfig, DeviceConfig
from mae.report import ReportPage
from mae.train import Training
from tasks.evaluate import Evaluations
from tasks.stage import seconds_of_work, show_library_logs

P = ParamSpec("P")
R = TypeVar("R", bound=StageResult)
T = TypeVar("T")

checks: dict[str, Callable[[Any], bool]] = {}  # by the stage's name

logger = logging.getLogger(__name__)
show_library_logs()


def workspace_path() -> Path:
    """Return $MAE_WORKSPACE, the folder that all stages write to, as an absolute path."""
    return Path(os.environ.get("MAE_WORKSPACE", "workspace")).resolve()


def stage(name: str, check: Callable[[Any], bool]) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function a subflow whose result is stored for retries of the parent run.

    The result is pickled, which is Prefect's default. Its JSON serializer (3.8) would return a dict for a model.

    Args:
        check: returns whether the files that a result names are there and unchanged.
    """
    checks[name] = check
    return flow(name=name, flow_run_name=name, persist_result=True)


def finished(subflow: Flow[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a stage and return its result, once the stage's check accepts it.

    When the parent run is retried, Prefect returns the stored result of each stage that finished. If that result's
    files are gone, call the stage again: the next call has no stored result and does the work. Each attempt stores at
    most one result of a stage, so as many calls as the parent run has had attempts are enough.

    Raises:
        InputError: the stage has run, and its files are not there or changed.
    """
    for calls_left in reversed(range(runtime.flow_run.run_count or 1)):
        worked, started = dict(seconds_of_work), time.monotonic()
        # The parent's heartbeat covers the stage, which runs in the same process; another would cost a second.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            result = subflow(*args, **kwargs)
        if checks[subflow.name](result):
            how = "reused" if result.reused else "done"
            if seconds_of_work == worked:  # no task has run
                how = "kept from the earlier attempt"
            logger.info("%s: %s in %.1f s", subflow.name, how, time.monotonic() - started)
            return result
        if calls_left:
            logger.warning("%s: files of the finished stage are missing or changed; running it again", subflow.name)
    raise InputError(
        f"stage {subflow.name}",
        expected="the files that its result names, unchanged",
        found=f"missing or changed files: {result.model_dump_json()}",
        todo="check that nothing else writes to this workspace, then retry the run",
    )


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


def results(futures: Sequence[PrefectFuture[T]]) -> list[T]:
    """Wait until all mapped tasks have ended; return their results, or raise the error of the first that failed."""
    wait(list(futures))
    return [future.result() for future in futures]


def unchanged(path: Path, digest: str) -> bool:
    """Return whether a file exists and has this digest."""
    return path.is_file() and file_digest(path) == digest


# The next stage lists all files of the folder, so the marker is enough here, and for `unpack`.
@stage("sample-data", lambda made: (made.root / sample.MARKER).is_file())
def sample_data(workspace: Path) -> SampleData:
    """Unpack the shipped sample."""
    return tasks.sample_data.unpack(workspace)


@stage("unpack", lambda made: (made.root / unpacking.MARKER).is_file())
def unpack(tars: list[Path], root: Path) -> Unpacked:
    """Unpack archives into a data root."""
    return tasks.unpack.unpack(tars, root)


@stage("validate", lambda made: unchanged(made.directory / MANIFEST, made.manifest_digest))
def validate(root: Path, workspace: Path, data: DataConfig) -> Validation:
    """Check every file of the data root."""
    found = tasks.validate.plan(root, workspace, data)
    return tasks.validate.conclude(found, results(tasks.validate.examine.map(found.units)))


@stage("shard", tasks.shard.intact)
def shard(validation: Validation, workspace: Path, data: DataConfig) -> Records:
    """Write the valid images as MindRecord files."""
    out = tasks.shard.directory(validation.directory, workspace, data)
    with sole_writer(out):
        found = tasks.shard.plan(validation.directory, out, data)
        results(tasks.shard.write.map(found.groups))
        return tasks.shard.conclude(found)


@stage("rank-table", lambda made: unchanged(made.path, made.digest))
def rank_table(workspace: Path, device: DeviceConfig, cluster: Path | None) -> RankTableFile:
    """Make and check the rank table."""
    return tasks.rank_table.rank_table(workspace, device, cluster)


@stage("pretrain", lambda made: unchanged(made.checkpoint, made.digest))
def pretrain(config: Config, workspace: Path, rank_table: RankTableFile) -> Training:
    """Pre-train on the records of `config.data.records`."""
    return tasks.train.train(config, workspace, rank_table.path)


@stage("evaluate", lambda made: all(item.path.is_file() for item in made.items))
def evaluate(config: Config, checkpoint: Path, records: Path, workspace: Path, refresh: bool = False) -> Evaluations:
    """Evaluate the encoder by each protocol that the config has a section for."""
    measure = tasks.evaluate.evaluate
    items = [
        measure(protocol, checkpoint, records, config, workspace, refresh)
        for protocol in tasks.evaluate.protocols(config)
    ]
    return Evaluations(items=items, reused=all(item.reused for item in items))


@stage("report", lambda made: unchanged(made.path, made.digest))
def report(config: Config, training: Training, validation: Validation) -> ReportPage:
    """Reconstruct some validation images and write the page."""
    images = tasks.predict.validation_images(validation)
    tasks.predict.predict(training.checkpoint, images, training.run_dir, config.device)
    return tasks.report.report(training.run_dir)
