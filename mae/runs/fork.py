"""A run that begins at another run's checkpoint, with a changed recipe: `mae train CONFIG --from CHECKPOINT`.

fork.json of the new run says where it comes from; its metrics.jsonl begins with the other's lines up to there.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Optional

from pydantic import BaseModel, ConfigDict

from datasets.base.errors import InputError
from datasets.base.files import atomic_directory, write_json
from mae.config.sections import Config
from mae.runs import checkpoint
from mae.runs.failure import FALLBACK
from mae.runs.inputs import differences, run_inputs
from mae.training.metrics import METRICS, cut

FORK = "fork.json"


class Fork(BaseModel):
    """fork.json."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: str
    step: int
    changed: str  # each key of the config with both values


def fork(source: Path, run_dir: Path, config: Config, *, fresh: bool = False) -> None:
    """Give a run that has not begun the checkpoint of another; one that has begun so goes on.

    Args:
        source: checkpoint directory, or a run, whose newest it is.
        run_dir: of the new run.
        fresh: remove what is there of it, once nothing speaks against the checkpoint.

    Raises:
        InputError: the checkpoint is damaged, of this run itself, or of another task, model, seed, global batch or
            other records; or the run has begun otherwise.
    """
    source = checkpoint.model_file(source).resolve().parent
    if run_dir.resolve() in source.parents:
        todo = "change the config, or remove the checkpoints behind it to go on from it"
        raise InputError(source, expected="a checkpoint of another run", found="one of this run", todo=todo)
    if not fresh and checkpoint.newest(run_dir / "checkpoints") is not None:
        begun = load_fork(run_dir)
        if begun is not None and begun.checkpoint == str(source):
            return
        todo = "leave out --from to go on with it, or add --fresh to remove it"
        raise InputError(run_dir, expected="a run that has not begun", found="checkpoints of it", todo=todo)
    fault = checkpoint.fault(source)
    if fault is not None:
        raise InputError(source, expected="an intact checkpoint", found=fault, todo="give an earlier one")
    state, wanted = checkpoint.load_state(source), run_inputs(config)
    fixed = {key: value for key, value in wanted.items() if not key.startswith((f"{config.task}.", "compute."))}
    unfit = differences({key: state.inputs.get(key) for key in fixed}, fixed)
    if unfit:
        expected = f"a checkpoint that differs in {config.task} and compute only"
        raise InputError(source, expected=expected, found=unfit, todo="undo this, or begin anew without --from")
    if fresh:
        shutil.rmtree(run_dir, ignore_errors=True)
    of_run = source.parents[1]
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in (METRICS, FALLBACK):
        if (of_run / name).exists():
            shutil.copyfile(of_run / name, run_dir / name)
    cut(run_dir / METRICS, state.step)
    begun = Fork(checkpoint=str(source), step=state.step, changed=differences(state.inputs, wanted))
    write_json(run_dir / FORK, begun.model_dump())
    with atomic_directory(run_dir / "checkpoints" / str(state.step)) as partial:  # last: with it the run has begun
        for name in state.digests:
            if name != checkpoint.STATE:
                shutil.copyfile(source / name, partial / name)
        checkpoint.write_state(partial, **{**state.model_dump(exclude={"digests"}), "inputs": wanted})


def load_fork(run_dir: Path) -> Optional[Fork]:
    """Where a run has begun; none where that was its first step."""
    path = run_dir / FORK
    return Fork.model_validate_json(path.read_text()) if path.exists() else None
