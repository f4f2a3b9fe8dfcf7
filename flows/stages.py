"""Each stage as a subflow, which the UI draws as one box with its tasks inside.

Prefect stores the subflows' results. A retried parent run takes a stored result instead of running the stage again,
after `finished` has checked the files that the result names.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from prefect import Flow, flow, runtime
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

import tasks.evaluate
import tasks.predict
import tasks.rank_table
import tasks.report
import tasks.sample_data
import tasks.shard
import tasks.train
import tasks.unpack
import tasks.validate
from datasets.base.errors import InputError
from datasets.base.files import StageResult
from datasets.records import Records
from datasets.sample import SampleData
from datasets.sharding import sole_writer
from datasets.unpacking import Unpacked
from datasets.validation import Validation
from flows.runners import results
from mae.cluster import RankTableFile
from mae.config import Config, DataConfig, DeviceConfig
from mae.report import ReportPage
from mae.train import Training
from tasks.evaluate import Evaluations
from tasks.stage import seconds_of_work, show_library_logs

P = ParamSpec("P")
R = TypeVar("R", bound=StageResult)

logger = logging.getLogger(__name__)
show_library_logs()


def workspace_path() -> Path:
    """Return $MAE_WORKSPACE, the folder that all stages write to, as an absolute path."""
    return Path(os.environ.get("MAE_WORKSPACE", "workspace")).resolve()


def stage(name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a function a subflow whose result is stored for retries of the parent run.

    The result is pickled, which is Prefect's default. Its JSON serializer (3.8) would return a dict for a model.
    """
    return flow(name=name, flow_run_name=name, persist_result=True)


def finished(subflow: Flow[P, R], intact: Callable[[R], bool], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a stage and return its result, once `intact` finds the result's files there and unchanged.

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
        if intact(result):
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


@stage("sample-data")
def sample_data(workspace: Path) -> SampleData:
    """Unpack the shipped sample."""
    return tasks.sample_data.unpack(workspace)


@stage("unpack")
def unpack(tars: list[Path], root: Path) -> Unpacked:
    """Unpack archives into a data root."""
    return tasks.unpack.unpack(tars, root)


@stage("validate")
def validate(root: Path, workspace: Path, data: DataConfig) -> Validation:
    """Check every file of the data root."""
    found = tasks.validate.plan(root, workspace, data)
    return tasks.validate.conclude(found, results(tasks.validate.examine.map(found.units)))


@stage("shard")
def shard(validation: Validation, workspace: Path, data: DataConfig) -> Records:
    """Write the valid images as MindRecord files."""
    out = tasks.shard.directory(validation.directory, workspace, data)
    with sole_writer(out):
        found = tasks.shard.plan(validation.directory, out, data)
        results(tasks.shard.write.map(found.groups))
        return tasks.shard.conclude(found)


@stage("rank-table")
def rank_table(workspace: Path, device: DeviceConfig, cluster: Path | None) -> RankTableFile:
    """Make and check the rank table."""
    return tasks.rank_table.rank_table(workspace, device, cluster)


@stage("pretrain")
def pretrain(config: Config, workspace: Path, rank_table: RankTableFile) -> Training:
    """Pre-train on the records of `config.data.records`."""
    return tasks.train.train(config, workspace, rank_table.path)


@stage("evaluate")
def evaluate(config: Config, checkpoint: Path, records: Path, workspace: Path, refresh: bool = False) -> Evaluations:
    """Evaluate the encoder by each protocol that the config has a section for."""
    measure = tasks.evaluate.evaluate
    items = [
        measure(protocol, checkpoint, records, config, workspace, refresh)
        for protocol in tasks.evaluate.protocols(config)
    ]
    return Evaluations(items=items, reused=all(item.reused for item in items))


@stage("report")
def report(config: Config, training: Training, validation: Validation) -> ReportPage:
    """Reconstruct some validation images and write the page."""
    images = tasks.predict.validation_images(validation)
    tasks.predict.predict(training.checkpoint, images, training.run_dir, config.device)
    return tasks.report.report(training.run_dir)
