"""Running a step again whose loss or gradient was not finite, from what `mae.runs.failure` kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

import numpy as np
from pydantic import ConfigDict

from datasets.base.errors import InputError
from datasets.base.files import StageResult
from mae.config.load import load_config
from mae.runs import checkpoint
from mae.runs.failure import CONFIG, FILE, INPUTS


class Replay(StageResult):
    """What a step that was run again gave. Parameters are in the model's order."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    step: int
    loss: float
    grad_norm: float
    saturated: bool  # the device had to, as a 910A does; finite numbers mean nothing then
    first_gradient: Optional[str]  # name of the first parameter whose gradient is not finite
    gradients: int  # number of those
    parameters: list[str]  # names of those that were not finite before the step


def replay(path: Path) -> Replay:
    """Run the step of a failure's directory once more, on one device, with the batches of all ranks one by one.

    With one rank it is the same graph on the same arrays, and gives the same numbers.

    Raises:
        InputError: it is no such directory.
    """
    directory = path if path.is_dir() else path.parent
    if not (directory / FILE).is_file():
        todo = "give failure/step_<n> of a run"
        raise InputError(path, expected=f"a directory with {FILE}", found="none", todo=todo)
    import mindspore as ms
    from mindspore import Tensor

    from mae.device.context import setup
    from mae.training.engine import build_update, load_run
    from mae.training.task import build_job
    from mae.training.update import Accumulate, Report

    batches: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
    for name, array in checkpoint.load_weights(directory / INPUTS).items():
        rank, part, argument = map(int, name.split("."))
        batches.setdefault((part, rank), []).append((argument, array))
    inputs = [[Tensor(array) for _, array in sorted(batch, key=lambda b: b[0])] for _, batch in sorted(batches.items())]
    config, card = load_config(directory / CONFIG), checkpoint.load_card(directory / checkpoint.MODEL)
    recipe = config.recipe.model_copy(update={"accum_iter": len(inputs)})
    device = config.device.model_copy(update={"ranks": 1})
    here = config.model_copy(update={config.task: recipe, "device": device, "model": card.model, "init": None})
    setup(device.target, ranks=1, compute=here.compute)
    job = build_job(here, classes=card.labels)
    update = build_update(here, job)
    load_run(directory, job, update)
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
    report = Report.read(update(Tensor(0.0, ms.float32), *inputs[-1]))
    return Replay(
        step=json.loads((directory / FILE).read_text())["step"],
        loss=report.loss,
        grad_norm=report.grad_norm,
        saturated=report.saturated,
        first_gradient=next((p.name for p in job.optimizer.params if p.name in faulty), None),
        gradients=len(faulty),
        parameters=unfit,
    )
