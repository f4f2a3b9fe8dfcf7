"""mae-evaluate: finished runs, measured again and remembered; every night at 2 (prefect.yaml)."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow

import tasks.evaluate
import tasks.history
from datasets.base.errors import InputError
from flows import stages
from flows.stages import finished, workspace_path
from mae.config.sections import Config, load_config
from mae.launch import RanksFailed
from mae.runs import checkpoint

logger = logging.getLogger(__name__)


@flow(name="mae-evaluate")
def mae_evaluate(run: str | None = None) -> list[Path]:
    """Measure every finished pre-training run of the workspace, or the one named, although it was measured before.

    One run's failure does not keep the others from being measured; it fails this flow at the end.

    Returns:
        the new files of the history.
    """
    workspace = workspace_path()
    runs = finished_runs(workspace) if run is None else {run: _finished_run(workspace / "runs" / run)}
    written, failures = [], []
    for name, (config, model) in runs.items():
        records = Path(str(config.data.records))
        try:
            evaluations = finished(
                stages.evaluate, tasks.evaluate.intact, config, model, records, workspace, refresh=True
            )
        except (InputError, RanksFailed) as error:
            logger.error("%s: %s", name, error)
            failures.append(name)
            continue
        written += [tasks.history.append(name, item, workspace) for item in evaluations.items]
    if failures:
        todo = "the log above says why"
        raise InputError("mae-evaluate", expected="every run measured", found=f"not {', '.join(failures)}", todo=todo)
    return written


def finished_runs(workspace: Path) -> dict[str, tuple[Config, Path]]:
    """Config and model file of each pre-training run that has reached its last epoch, by the run's name."""
    found = {}
    for path in sorted((workspace / "runs").glob("*/config.yaml")):
        try:
            found[path.parent.name] = _finished_run(path.parent)
        except InputError as error:
            logger.info("left out: %s", error)
    return found


def _finished_run(run_dir: Path) -> tuple[Config, Path]:
    config = load_config(run_dir / "config.yaml")
    if config.task != "pretrain" or config.pretrain is None:
        todo = "name the pre-training run, which is fine-tuned to be measured"
        raise InputError(run_dir, expected="a pre-training run", found=f"task: {config.task}", todo=todo)
    newest = checkpoint.newest(run_dir / "checkpoints")
    epoch = checkpoint.load_state(newest).epoch if newest is not None else 0
    if newest is None or epoch < config.pretrain.epochs:
        todo = "continue it: retry its flow run"
        raise InputError(run_dir, expected=f"{config.pretrain.epochs} epochs", found=str(epoch), todo=todo)
    return config, checkpoint.model_file(newest)
