"""What a run of the chain is asked to do, checked before anything is spent on it; without Prefect, so in no time."""

from __future__ import annotations

import difflib

from datasets.base.errors import InputError
from mae.config import Config, load_config
from mae.device import check_target

# What each stage needs before it. A data root of one's own takes the place of sample-data.
NEEDS: dict[str, tuple[str, ...]] = {
    "sample-data": (),
    "validate": ("sample-data",),
    "shard": ("validate",),
    "rank-table": (),
    "pretrain": ("shard", "rank-table"),
    "evaluate": ("pretrain",),
    "report": ("evaluate",),
}
REAL_JOB = "configs/pretrain_vit_b16_800ep.yaml"


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
