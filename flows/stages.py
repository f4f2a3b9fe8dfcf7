"""The stages as subflows: one labelled box each in the UI, with its tasks inside.

The subflows' results are persisted, so that a retried parent run takes them instead of running the stage again. A
result is only trusted after `finished` has looked at the files that it names.
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
from datasets.records.index import Records
from datasets.records.shard import sole_writer
from datasets.sample import SampleData
from datasets.unpacking.unpack import Unpacked
from datasets.validation.validate import Validation
from flows.runners import results
from mae.cluster.rank_table import RankTableFile
from mae.config.sections import Config, DataConfig, DeviceConfig
from mae.report import ReportPage
from mae.train import Training
from tasks.evaluate import Evaluations
from tasks.stage import seconds_of_work, show_library_logs

P = ParamSpec("P")
R = TypeVar("R", bound=StageResult)

logger = logging.getLogger(__name__)
show_library_logs()


def workspace_path() -> Path:
    """Where the stages write: $MAE_WORKSPACE, as an absolute path."""
    return Path(os.environ.get("MAE_WORKSPACE", "workspace")).resolve()


def stage(name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a subflow of a stage function, whose result is kept for the parent's retries.

    It is kept as Prefect does by default, pickled: with its JSON serializer Prefect 3.8 gives back a model as a dict.
    """
    return flow(name=name, flow_run_name=name, persist_result=True)


def finished(subflow: Flow[P, R], intact: Callable[[R], bool], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a stage until its result's files are there and unchanged.

    On a retry of the parent run, call n of a stage answers with the result of the earlier call n, if that finished; the
    first call beyond those does the work. So no attempt of the parent needs more calls than the run has had attempts.

    Raises:
        InputError: the stage did its work and its files are still not there.
    """
    for calls_left in reversed(range(runtime.flow_run.run_count or 1)):
        worked, started = dict(seconds_of_work), time.monotonic()
        # A stage lives in its parent's process, whose heartbeat is enough; its own would cost a second at its end.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            result = subflow(*args, **kwargs)
        if intact(result):
            how = "reused" if result.reused else "done"
            if seconds_of_work == worked:  # no task ran
                how = "kept from the earlier attempt"
            logger.info("%s: %s in %.1f s", subflow.name, how, time.monotonic() - started)
            return result
        if calls_left:
            logger.warning("%s: files of the finished stage are gone or changed, so it runs again", subflow.name)
    raise InputError(
        f"stage {subflow.name}",
        expected="files as its result names them",
        found=f"others: {result.model_dump_json()}",
        todo="check that nothing else writes to this workspace, then retry the run",
    )


@stage("sample-data")
def sample_data(workspace: Path) -> SampleData:
    """Unpack the shipped sample."""
    return tasks.sample_data.unpack(workspace)


@stage("unpack")
def unpack(tars: list[Path], root: Path) -> Unpacked:
    """Turn archives into a data root."""
    return tasks.unpack.unpack(tars, root)


@stage("validate")
def validate(root: Path, workspace: Path, data: DataConfig) -> Validation:
    """Look at every file of the data root."""
    found = tasks.validate.plan(root, workspace, data)
    return tasks.validate.conclude(found, results(tasks.validate.examine.map(found.units)))


@stage("shard")
def shard(validation: Validation, workspace: Path, data: DataConfig) -> Records:
    """Write the valid images as MindRecord."""
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
    """Pre-train on the records that `config.data.records` names."""
    return tasks.train.train(config, workspace, rank_table.path)


@stage("evaluate")
def evaluate(config: Config, checkpoint: Path, records: Path, workspace: Path, refresh: bool = False) -> Evaluations:
    """Measure the encoder by every protocol that the config has a section for."""
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
    tasks.predict.predict(training.checkpoint, images, training.run_dir, config.device.target)
    return tasks.report.report(training.run_dir)
