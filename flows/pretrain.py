"""mae-pretrain: from a folder of images to an evaluated checkpoint and a report.

prefect deployment run mae-pretrain -p config=configs/demo.yaml     in the worker of `make up`
python -m flows.pretrain configs/demo.yaml                          here, with a Prefect server of its own: `make demo`
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below: Prefect reads its settings when it is imported
    import sys
    from importlib import import_module

    from flows.embedded import main

    sys.exit(main(lambda: import_module("flows.pretrain").mae_pretrain))

import logging
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, State

import tasks.evaluate
import tasks.rank_table
import tasks.report
import tasks.sample_data
import tasks.shard
import tasks.train
import tasks.validate
from datasets.base.files import StageResult
from flows import stages as run
from flows.job import REAL_JOB, check_job
from flows.stages import finished, spread, workspace_path
from mae.cluster import check_inventory
from mae.config import Config
from mae.launch import reap
from mae.runs import Run
from mae.train import check_data

logger = logging.getLogger(__name__)


class Chain(StageResult):
    """Paths of the chain's results; None for a stage that was not run."""

    run_dir: Path | None = None
    report: Path | None = None


def end_training(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 (Prefect's hook)
    """End the ranks of a cancelled or crashed run. The worker calls this, as the run's own process may be gone."""
    for run_dir in training_directories(flow_run.id):
        reap(run_dir)


def training_directories(flow_run_id: UUID) -> list[Path]:
    """Return the run directories that a flow run has trained in, from the recorded parameters of its stage runs."""
    of_parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        named = FlowFilter(name=FlowFilterName(any_=[run.pretrain.name]))
        started = client.read_flow_runs(flow_filter=named, flow_run_filter=of_parent)
    parameters = [stage_run.parameters for stage_run in started]
    return [Run.of(Config.model_validate(p["config"]), Path(p["workspace"])).directory for p in parameters]


@flow(name="mae-pretrain", on_cancellation=[end_training], on_crashed=[end_training])
def mae_pretrain(
    config: str = REAL_JOB,
    overrides: list[str] = [],  # noqa: B006 (the UI's form shows it; nothing changes it)
    data_root: str | None = None,
    cluster: str | None = None,
    stages: list[str] | None = None,
) -> Chain:
    """Run the chain, or the named stages and those that they need.

    Args:
        config: YAML job config. The default is the real job: ViT-B/16, 800 epochs, on Ascend.
        overrides: key=value changes to the config, e.g. pretrain.epochs=5.
        data_root: folder of images. Default: the config's data.root, or the shipped sample.
        cluster: inventory of the servers that train together. Default: this server.
        stages: names of stages. Default: all.
    """
    job, wanted = check_job(config, overrides, data_root, stages)
    if cluster is not None and "pretrain" in wanted:
        check_inventory(Path(cluster), job.device)
    workspace = workspace_path()
    logger.info("%s into %s: %s", config, workspace, ", ".join(wanted))

    if "sample-data" in wanted:
        sample = finished(run.sample_data, workspace)
    if "validate" in wanted:
        root = Path(job.data.root) if job.data.root is not None else sample.root
        validation = finished(spread(run.validate, job.data), root, workspace, job.data)
        if "pretrain" in wanted:
            protocols = tasks.evaluate.protocols(job) if "evaluate" in wanted else ()
            check_data(job, validation, protocols=protocols)
    if "shard" in wanted:
        records = finished(spread(run.shard, job.data), validation, workspace, job.data)
        job = job.model_copy(update={"data": job.data.model_copy(update={"records": str(records.directory)})})
    if "rank-table" in wanted:
        inventory = Path(cluster) if cluster is not None else None
        rank_table = finished(run.rank_table, workspace, job.device, inventory)
    if "pretrain" in wanted:
        training = finished(run.pretrain, job, workspace, rank_table)
    if "evaluate" in wanted:
        finished(run.evaluate, job, training.checkpoint, records.directory, workspace)
    if "report" in wanted:
        page = finished(run.report, job, training, validation)
    run_dir = training.run_dir if "pretrain" in wanted else None
    return Chain(run_dir=run_dir, report=page.path if "report" in wanted else None)
