"""mae-evaluate: measure finished runs again and store the results; every night at 2 (prefect.yaml)."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from prefect import flow

import tasks.history
from datasets.base.errors import InputError
from flows import stages
from flows.stages import finished, workspace_path
from mae.config import Config
from mae.device import DeviceHeld, free_devices
from mae.launch import RanksFailed
from mae.runs import Run, model_file

WAIT_HOURS = 20.0  # the next night's evaluation begins after 24
LOOK_SECONDS = 10.0

logger = logging.getLogger(__name__)


@flow(name="mae-evaluate")
def mae_evaluate(run: str | None = None) -> list[Path]:
    """Measure every finished pre-training run of the workspace again, or only the one named.

    It waits for free NPUs, or computes on the CPU if the run's config has `evaluate.target: CPU`. If a run cannot be
    measured, the others still are; the flow fails at its end.

    Returns:
        the new files of the history.
    """
    workspace = workspace_path()
    runs = finished_runs(workspace) if run is None else [_finished_run(workspace / "runs" / run)]
    written, failures = [], []
    for each in runs:
        newest = each.newest()
        assert newest is not None  # it is finished
        config = each.config_of_another()
        try:
            _wait_for_devices(each.name, config)
            evaluations = finished(
                stages.evaluate,
                config,
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


def _wait_for_devices(name: str, config: Config) -> None:
    """Return when the NPUs that an evaluation needs are free. Another job may still take them before it begins.

    Raises:
        DeviceHeld: they are not free after WAIT_HOURS.
    """
    device, deadline, logged = config.measured_on, time.monotonic() + 3600 * WAIT_HOURS, ""
    while True:
        try:
            free_devices(device.target, device.ranks)
            return
        except DeviceHeld as error:
            if time.monotonic() > deadline:
                raise
            if logged != str(error):
                logged = str(error)
                logger.info("%s: waiting: %s", name, error)
        time.sleep(LOOK_SECONDS)


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
