"""A step whose loss or gradient was not finite: everything it had is stored, and it can be run again.

`mae.runs.failure` describes the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import save_file

from datasets.base.errors import InputError
from datasets.base.files import StageResult, atomic_directory, write_json
from datasets.records import sources
from mae.config.load import dump_config, load_config
from mae.runs.checkpoint import MODEL, OPTIMIZER
from mae.runs.failure import FILE
from mae.runs.model_file import load_card, load_weights
from mae.runs.run import CONFIG

if TYPE_CHECKING:
    from datasets.batches import Batch
    from mae.training.task import Job, Place

INPUTS = "inputs.safetensors"


class Sample(BaseModel):
    """One image of a batch."""

    rank: int
    part: int
    place: int
    record: int  # of the training split
    path: str  # of the source file, relative to the root of the records


class Replay(StageResult):
    """The outcome of a step that was run again. Parameters are in the model's order."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    step: int
    loss: float
    grad_norm: float
    saturated: bool  # True: the device saturated a number, as a 910A does; the finite numbers here mean nothing then
    first_gradient: Optional[str]  # name of the first parameter whose gradient is not finite
    gradients: int  # number of parameters whose gradient is not finite
    parameters: list[str]  # names of the parameters that were not finite before the step


def write_failed_step(
    directory: Path,
    job: Job,
    weights: Mapping[str, np.ndarray],
    moments: Mapping[str, np.ndarray],
    batches: Mapping[Place, Batch],
    *,
    step: int,
) -> None:
    """Write everything that a step had, over all ranks. A reader sees all of it or nothing."""
    records = Path(str(job.config.data.records))
    samples, arrays = [], {}
    for place, batch in batches.items():
        rows = zip(batch.samples.tolist(), sources(records, "train", batch.samples.tolist()))
        for n, (record, row) in enumerate(rows):
            samples.append(Sample(rank=place.rank, part=place.part, place=n, record=record, path=row.path).model_dump())
        for n, array in enumerate(job.inputs(batch, place)):
            arrays[f"{place.rank}.{place.part}.{n}"] = np.ascontiguousarray(array)
    first = next(iter(batches))
    with atomic_directory(directory) as partial:
        save_file(dict(weights), partial / MODEL, metadata={"maeflow": job.card.model_dump_json()})
        save_file(dict(moments), partial / OPTIMIZER)
        save_file(arrays, partial / INPUTS)
        (partial / CONFIG).write_text(dump_config(job.config))
        facts = {"step": step, "epoch": first.epoch, "update": first.update, "samples": samples}
        write_json(partial / FILE, facts)


def replay(path: Path) -> Replay:
    """Run a failed step once more, on one device, with the batches of all ranks one after the other.

    Args:
        path: directory of the failure, or a file in it.

    For a run of one rank this is the same graph on the same arrays, with the same results.

    Raises:
        InputError: `path` is not such a directory.
    """
    directory = path if path.is_dir() else path.parent
    if not (directory / FILE).is_file():
        todo = "give failure/step_<n> of a run"
        raise InputError(path, expected=f"a directory with {FILE}", found="none", todo=todo)
    import mindspore as ms
    from mindspore import Tensor

    from mae.device.context import setup
    from mae.training.state import load_state
    from mae.training.task import build_job, build_update
    from mae.training.update import Accumulate, StepResult

    batches: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
    for name, array in load_weights(directory / INPUTS).items():
        rank, part, argument = map(int, name.split("."))
        batches.setdefault((part, rank), []).append((argument, array))
    inputs = [[Tensor(array) for _, array in sorted(batch, key=lambda b: b[0])] for _, batch in sorted(batches.items())]
    config, card = load_config(directory / CONFIG), load_card(directory / MODEL)
    recipe = config.recipe.model_copy(update={"accum_iter": len(inputs)})
    device = config.device.model_copy(update={"ranks": 1})
    here = config.model_copy(update={config.task: recipe, "device": device, "model": card.model, "init": None})
    setup(device.target, ranks=1, compute=here.compute)
    job = build_job(here, classes=card.labels)
    update = build_update(job)
    load_state(directory, job, update)
    job.model.set_train(True)
    unfit = [p.name for p in job.model.get_parameters() if not np.isfinite(p.asnumpy()).all()]
    faulty = set()
    for batch in inputs:
        for parameter, gradient in zip(job.optimizer.params, update.gradients(*batch)[1]):
            if not np.isfinite(gradient.asnumpy()).all():
                faulty.add(parameter.name)
    accumulate = Accumulate(update) if len(inputs) > 1 else None
    for batch in inputs[:-1]:
        accumulate(*batch)  # type: ignore[misc]
    result = StepResult.read(update(Tensor(0.0, ms.float32), *inputs[-1]))
    return Replay(
        step=json.loads((directory / FILE).read_text())["step"],
        loss=result.loss,
        grad_norm=result.grad_norm,
        saturated=result.saturated,
        first_gradient=next((p.name for p in job.optimizer.params if p.name in faulty), None),
        gradients=len(faulty),
        parameters=unfit,
    )
