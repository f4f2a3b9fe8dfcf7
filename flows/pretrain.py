"""mae-pretrain: from a folder of images to a judged, reported checkpoint.

prefect deployment run mae-pretrain -p config=configs/demo.yaml     in the worker of `make up`
python -m flows.pretrain configs/demo.yaml                          here, with a Prefect server of its own: `make demo`
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below: Prefect reads its settings when it is imported
    import sys

    from flows.embedded import main

    sys.exit(main())

import difflib
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
from datasets.stage import InputError, StageResult
from flows import stages as run
from flows.stages import finished, workspace_path
from mae.config import Config, load_config
from mae.device import check_target
from mae.launch import reap
from mae.train import run_directory

logger = logging.getLogger(__name__)

NEEDS: dict[
    str, tuple[str, ...]
] = {  # what each stage needs before it; a data root of one's own takes the place of sample-data
    "sample-data": (),
    "validate": ("sample-data",),
    "shard": ("validate",),
    "rank-table": (),
    "pretrain": ("shard", "rank-table"),
    "evaluate": ("pretrain",),
    "report": ("evaluate",),
}
REAL_JOB = "configs/pretrain_vit_b16_800ep.yaml"


class Chain(StageResult):
    """Where the chain's results are; what was not asked for is none."""

    run_dir: Path | None = None
    report: Path | None = None


def end_training(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 (Prefect's hook)
    """End the ranks of a cancelled or crashed run, whose own process may be gone: the worker calls this."""
    for run_dir in training_directories(flow_run.id):
        reap(run_dir)


def training_directories(flow_run_id: UUID) -> list[Path]:
    """The run directories that a parent run has trained in, from the recorded parameters of its stage runs."""
    of_parent = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]))
    with get_client(sync_client=True) as client:
        named = FlowFilter(name=FlowFilterName(any_=[run.pretrain.name]))
        started = client.read_flow_runs(flow_filter=named, flow_run_filter=of_parent)
    parameters = [stage_run.parameters for stage_run in started]
    return [run_directory(Config.model_validate(p["config"]), workspace=Path(p["workspace"])) for p in parameters]


@flow(name="mae-pretrain", on_cancellation=[end_training], on_crashed=[end_training])
def mae_pretrain(
    config: str = REAL_JOB,
    overrides: list[str] = [],  # noqa: B006 (the UI's form shows it; nothing changes it)
    data_root: str | None = None,
    cluster: str | None = None,
    stages: list[str] | None = None,
) -> Chain:
    """Run the chain, or the named stages with everything that they need before them.

    Args:
        config: YAML job config; the default is the real job, ViT-B/16 for 800 epochs on Ascend.
        overrides: key=value changes to the config, e.g. pretrain.epochs=5.
        data_root: folder of images; none takes the config's, or the shipped sample.
        cluster: inventory of the servers that train together; none means this server.
        stages: names of stages; none runs all.
    """
    job, wanted = prepare(config, overrides, data_root, stages)
    workspace = workspace_path()
    logger.info("%s into %s: %s", config, workspace, ", ".join(wanted))
    chain = Chain()

    if "sample-data" in wanted:
        sample = finished(run.sample_data, tasks.sample_data.intact, workspace)
    if "validate" in wanted:
        root = Path(job.data.root) if job.data.root is not None else sample.root
        validation = finished(run.validate, tasks.validate.intact, root, workspace, job.data)
    if "shard" in wanted:
        records = finished(run.shard, tasks.shard.intact, validation, workspace, job.data)
        job = job.model_copy(update={"data": job.data.model_copy(update={"records": str(records.directory)})})
    if "rank-table" in wanted:
        inventory = Path(cluster) if cluster is not None else None
        rank_table = finished(run.rank_table, tasks.rank_table.intact, workspace, job.device, inventory)
    if "pretrain" in wanted:
        training = finished(run.pretrain, tasks.train.intact, job, workspace, rank_table)
        chain = chain.model_copy(update={"run_dir": training.run_dir})
    if "evaluate" in wanted:
        finished(run.evaluate, tasks.evaluate.intact, job, training.checkpoint, records.directory, workspace)
    if "report" in wanted:
        page = finished(run.report, tasks.report.intact, job, training, validation)
        chain = chain.model_copy(update={"report": page.path})
    return chain


def prepare(
    config: str, overrides: list[str], data_root: str | None, stages: list[str] | None
) -> tuple[Config, list[str]]:
    """The job and the stages to run, before anything is spent on them.

    Raises:
        InputError: as `load_job` and `plan` do, or the job trains on devices that this machine does not have.
    """
    job = load_job(config, overrides, data_root)
    wanted = plan(stages, own_images=job.data.root is not None)
    if "pretrain" in wanted:
        check_target(job.device)
    return job, wanted


def load_job(config: str, overrides: list[str], data_root: str | None) -> Config:
    """Read the config of a pre-training job; `data_root` takes the place of the config's.

    Raises:
        InputError: the config is at fault, is no pre-training job, or names records, which the chain writes itself.
    """
    job = load_config(config, overrides)
    if job.task != "pretrain":
        todo = "name a pre-training config; `mae train` runs the others"
        raise InputError(config, expected="task: pretrain", found=f"task: {job.task}", todo=todo)
    if job.data.records is not None:
        todo = "remove it and name the images with data.root; `mae train` takes finished records"
        raise InputError(f"{config}: data.records", expected="nothing", found=job.data.records, todo=todo)
    if data_root is None:
        return job
    return job.model_copy(update={"data": job.data.model_copy(update={"root": data_root})})


def plan(stages: list[str] | None, *, own_images: bool) -> list[str]:
    """The named stages and all that they need, in order; none names the last one.

    Raises:
        InputError: a name is no stage.
    """
    needs = {**NEEDS, "validate": ()} if own_images else NEEDS
    wanted: set[str] = set()
    open_names = list(NEEDS)[-1:] if stages is None else list(stages)
    while open_names:
        name = open_names.pop()
        if name not in needs:
            near = difflib.get_close_matches(name, needs, n=1)
            todo = f"did you mean {near[0]}?" if near else "name one of them"
            raise InputError("stages", expected=f"some of {', '.join(needs)}", found=repr(name), todo=todo)
        wanted.add(name)
        open_names += needs[name]
    return [name for name in needs if name in wanted]
