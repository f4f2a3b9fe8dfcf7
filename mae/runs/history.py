"""The loss of earlier runs of a recipe: <workspace>/history/training/<recipe>/<run>.json, one file per finished run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel

from datasets.base.digests import value_digest
from datasets.base.files import write_json
from mae.runs.run import Run

POINTS = 500  # of a stored curve


class Past(BaseModel, extra="forbid"):
    """The loss of a finished run: means over intervals of equal length, and the epoch at the end of each."""

    run: str
    seed: int
    epochs: list[float]
    loss: list[float]

    def mean(self, first: float, last: float) -> float:
        """Return the mean loss between two epochs."""
        at = np.linspace(first, last, 50)
        return float(np.interp(at, self.epochs, self.loss).mean())


def recipe_history(run: Run) -> Path:
    """Return the folder of the finished runs that have the same inputs as `run`, except for the seed."""
    inputs = {key: value for key, value in run.inputs.items() if key != "seed"}
    return run.workspace / "history" / "training" / value_digest(inputs)


def remember(run: Run) -> Path:
    """Store the loss curve of a finished run, and return the file."""
    lines = run.readings()
    epochs, loss = (np.array([line[name] for line in lines]) for name in ("epoch", "loss"))
    interval = np.minimum(epochs / run.config.recipe.epochs * POINTS, POINTS - 1e-9).astype(int)
    groups = [interval == number for number in np.unique(interval)]
    past = Past(
        run=run.name,
        seed=run.config.seed,
        epochs=[round(float(epochs[group].max()), 4) for group in groups],
        loss=[round(float(loss[group].mean()), 6) for group in groups],
    )
    path = recipe_history(run) / f"{run.name}.json"
    write_json(path, past.model_dump())
    return path


def past_runs(run: Run) -> list[Past]:
    """Return the finished runs of the same recipe in the workspace, without `run` itself."""
    files = sorted(recipe_history(run).glob("*.json"))
    return [Past.model_validate_json(path.read_text()) for path in files if path.stem != run.name]
