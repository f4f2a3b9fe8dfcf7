"""Loads the state of a training from a checkpoint, and copies it from the device."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from datasets.base.errors import InputError
from mae.runs import checkpoint
from mae.runs.model_file import load_weights
from mae.training.task import Job
from mae.training.update import Update
from mae.weights.restore import load_parameters


def resume(directory: Path, job: Job, update: Update) -> int:
    """Load a checkpoint into the job and return the number of completed steps."""
    load_state(directory, job, update)
    state = checkpoint.load_state(directory)
    place = f" and {state.update} updates" if state.update else ""
    print(f"resuming after epoch {state.epoch}{place} from {directory}", flush=True)
    if state.mindspore not in (None, ms.__version__):
        wrote = f"MindSpore {state.mindspore} wrote this checkpoint, and {ms.__version__} continues"
        print(f"WARNING: {wrote}; results differ by rounding", flush=True)
    return state.step


def load_state(directory: Path, job: Job, update: Update) -> None:
    """Load the parameters and the optimiser's state of a checkpoint into the job.

    Raises:
        InputError: they belong to another job.
    """
    load_parameters(job.model, load_weights(directory / checkpoint.MODEL), source=directory)
    saved = load_weights(directory / checkpoint.OPTIMIZER)
    names = sorted(parameter.name for parameter in update.state)
    if sorted(saved) != names:
        todo = "start over with --fresh"
        differing = ", ".join(sorted(set(saved) ^ set(names))[:5])
        raise InputError(directory / checkpoint.OPTIMIZER, expected="this recipe's state", found=differing, todo=todo)
    for parameter in update.state:
        parameter.set_data(Tensor(saved[parameter.name]))


def host_copies(parameters: Iterable[Parameter]) -> dict[str, np.ndarray]:
    """Return copies of parameters in the host's memory, by name."""
    return {p.name: p.asnumpy().copy() for p in parameters}
