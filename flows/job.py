"""The parameters of the chain, checked before anything is computed. Imports no Prefect, so the check takes no time."""

from __future__ import annotations

import difflib

from datasets.base.errors import InputError
from mae.config import Config, load_config
from mae.device import check_target
from mae.launch import check_interpreter

# The stages that each stage needs. With images of one's own, sample-data is not needed.
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


def check_job(
    config: str, overrides: list[str], data_root: str | None, stages: list[str] | None
) -> tuple[Config, list[str]]:
    """Return the job's config and the stages to run.

    Raises:
        InputError: as `load_job` and `needed_stages`, this machine lacks the devices that the job trains on, or
            `device.python` cannot run ranks.
    """
    job = load_job(config, overrides, data_root)
    wanted = needed_stages(stages, own_images=job.data.root is not None)
    if "pretrain" in wanted:
        check_target(job.device)
        check_interpreter(job.device.python)
    return job, wanted


def load_job(config: str, overrides: list[str], data_root: str | None) -> Config:
    """Read the config of a pre-training job. `data_root` replaces the config's data.root unless it is None.

    Raises:
        InputError: the config is not valid, not for pre-training, or names records, which the chain itself makes.
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


def needed_stages(stages: list[str] | None, *, own_images: bool) -> list[str]:
    """Return the named stages and all stages that they need, in the order to run them. None means all stages.

    Raises:
        InputError: there is no stage of this name.
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
