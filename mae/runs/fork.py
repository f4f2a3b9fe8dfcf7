"""A run that starts at another run's checkpoint with a changed recipe: `mae train CONFIG --from CHECKPOINT`.

fork.json of the new run names the checkpoint. Its metrics.jsonl starts with the other run's lines up to there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Optional

from pydantic import BaseModel

from datasets.base.errors import InputError
from datasets.base.files import atomic_directory, write_json
from mae.runs import checkpoint
from mae.runs.inputs import differences
from mae.runs.log import METRICS, cut
from mae.runs.model_file import model_file
from mae.runs.run import FALLBACK, Run

FORK = "fork.json"


class Fork(BaseModel, extra="forbid"):
    """fork.json."""

    checkpoint: str
    step: int
    changed: str  # each key of the config that differs, with both values


def fork(source: Path, run: Run, *, fresh: bool = False) -> None:
    """Copy another run's checkpoint into a run that has not begun. A run that began from it already is left as it is.

    Args:
        source: a checkpoint directory, or a run, whose newest checkpoint is taken.
        run: the new run.
        fresh: remove the new run's earlier attempt, after the checkpoint has been checked.

    Raises:
        InputError: the checkpoint is damaged, belongs to this run, or differs from it in task, model, seed, global
            batch or records; or the run has begun in another way.
    """
    source = model_file(source).resolve().parent
    if run.directory.resolve() in source.parents:
        todo = "change the config; or remove the later checkpoints to continue from this one"
        raise InputError(source, expected="a checkpoint of another run", found="one of this run", todo=todo)
    if not fresh and run.newest() is not None:
        begun = load_fork(run)
        if begun is not None and begun.checkpoint == str(source):
            return
        todo = "omit --from to continue it, or add --fresh to remove it"
        raise InputError(run.directory, expected="a run that has not begun", found="checkpoints of it", todo=todo)
    fault = checkpoint.fault(source)
    if fault is not None:
        raise InputError(source, expected="an intact checkpoint", found=fault, todo="give an earlier one")
    state, task = checkpoint.load_state(source), run.config.task
    fixed = {key: value for key, value in run.inputs.items() if not key.startswith((f"{task}.", "compute."))}
    unfit = differences({key: state.inputs.get(key) for key in fixed}, fixed)
    if unfit:
        expected = f"a checkpoint that differs in {task} and compute only"
        raise InputError(source, expected=expected, found=unfit, todo="undo this, or start a new run without --from")
    if fresh:
        shutil.rmtree(run.directory, ignore_errors=True)
    run.directory.mkdir(parents=True, exist_ok=True)
    for name in (METRICS, FALLBACK):
        if (source.parents[1] / name).exists():
            shutil.copyfile(source.parents[1] / name, run.directory / name)
    begun = Fork(checkpoint=str(source), step=state.step, changed=differences(state.inputs, run.inputs))
    cut(run.metrics, state.step)
    write_json(run.directory / FORK, begun.model_dump())
    with atomic_directory(run.checkpoints / str(state.step)) as partial:  # last: the run has begun when this exists
        for name in state.digests:
            if name != checkpoint.STATE:
                shutil.copyfile(source / name, partial / name)
        checkpoint.write_state(partial, **{**state.model_dump(exclude={"digests"}), "inputs": run.inputs})


def load_fork(run: Run) -> Optional[Fork]:
    """Return where a run has started; none if that was its first step."""
    path = run.directory / FORK
    return Fork.model_validate_json(path.read_text()) if path.exists() else None
