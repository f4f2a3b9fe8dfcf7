"""mae-evaluate: measure finished runs again and store the results; every night at 2 (prefect.yaml)."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow

import tasks.history
from datasets.base.errors import InputError
from flows import stages
from flows.stages import finished, workspace_path
from mae.launch import RanksFailed
from mae.runs import Run, model_file

logger = logging.getLogger(__name__)


@flow(name="mae-evaluate")
def mae_evaluate(run: str | None = None) -> list[Path]:
    """Measure every finished pre-training run of the workspace again, or only the one named.

    If a run cannot be measured, the others still are; the flow fails at its end.

    Returns:
        the new files of the history.
    """
    workspace = workspace_path()
    runs = finished_runs(workspace) if run is None else [_finished_run(workspace / "runs" / run)]
    written, failures = [], []
    for each in runs:
        newest = each.newest()
        assert newest is not None  # it is finished
        try:
            evaluations = finished(
                stages.evaluate,
                each.config_of_another(),
                model_file(newest),
                each.records,
                workspace,
                refresh=True,
            )
        except (InputError, RanksFailed) as error:
            logger.error("%s: %s", each.name, error)
            failures.append(each.name)
            continue
        written += [tasks.history.append(each.name, item, workspace) for item in evaluations.items]
    if failures:
        todo = "see the log above"
        raise InputError("mae-evaluate", expected="every run measured", found=f"not {', '.join(failures)}", todo=todo)
    return written


def finished_runs(workspace: Path) -> list[Run]:
    """Return the pre-training runs of a workspace that have finished, by name. The others are named in the log."""
    found = []
    for path in sorted((workspace / "runs").glob("*/config.yaml")):
        try:
            found.append(_finished_run(path.parent))
        except InputError as error:
            logger.info("skipped: %s", error)
    return found


def _finished_run(directory: Path) -> Run:
    run = Run.open(directory)
    if run.config.task != "pretrain":
        todo = "name a pre-training run; the evaluation fine-tunes it by itself"
        raise InputError(directory, expected="a pre-training run", found=f"task: {run.config.task}", todo=todo)
    if run.finished() is None:
        todo = "continue it: retry its flow run"
        raise InputError(directory, expected=f"{run.config.recipe.epochs} epochs", found="fewer", todo=todo)
    return run
