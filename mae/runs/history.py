"""How earlier runs of a recipe went: <workspace>/history/training/<recipe>/<run>.json, one file per finished run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from datasets.base.digests import value_digest
from datasets.base.files import write_json
from mae.config.sections import Config
from mae.runs.inputs import run_inputs
from mae.training.metrics import METRICS, read_lines, readings

POINTS = 500  # of a curve that is kept


class Past(BaseModel):
    """The loss of a finished run: means over stretches of equal length, at their ends."""

    model_config = ConfigDict(extra="forbid")

    run: str
    seed: int
    epochs: list[float]
    loss: list[float]

    def mean(self, first: float, last: float) -> float:
        """Mean loss between two epochs."""
        at = np.linspace(first, last, 50)
        return float(np.interp(at, self.epochs, self.loss).mean())


def recipe_digest(config: Config) -> str:
    """Names what runs have in common that differ in their seed only: recipe, model, data, start and device."""
    return value_digest({key: value for key, value in run_inputs(config).items() if key != "seed"})


def recipe_history(config: Config, run_dir: Path) -> Path:
    """The directory of the finished runs of a recipe, in the workspace of a run."""
    return run_dir.parents[1] / "history" / "training" / recipe_digest(config)


def remember(run_dir: Path, config: Config) -> Path:
    """Keep the curve of a finished run; returns the file."""
    lines = readings(read_lines(run_dir / METRICS))
    epochs, loss = (np.array([line[name] for line in lines]) for name in ("epoch", "loss"))
    stretch = np.minimum(epochs / config.recipe.epochs * POINTS, POINTS - 1e-9).astype(int)
    groups = [stretch == number for number in np.unique(stretch)]
    past = Past(
        run=run_dir.name,
        seed=config.seed,
        epochs=[round(float(epochs[group].max()), 4) for group in groups],
        loss=[round(float(loss[group].mean()), 6) for group in groups],
    )
    path = recipe_history(config, run_dir) / f"{run_dir.name}.json"
    write_json(path, past.model_dump())
    return path


def past_runs(config: Config, run_dir: Path) -> list[Past]:
    """Finished runs of the recipe in the workspace of a run, without itself."""
    files = sorted(recipe_history(config, run_dir).glob("*.json"))
    return [Past.model_validate(json.loads(path.read_text())) for path in files if path.stem != run_dir.name]
