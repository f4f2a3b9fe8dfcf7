"""Which checkpoint a run may continue from."""

from __future__ import annotations

from datasets.base.errors import InputError
from mae.runs import checkpoint
from mae.runs.inputs import differences
from mae.runs.run import CONFIG, Run


def check_resumed(run: Run, *, among_others: bool) -> None:
    """Refuse to continue from a checkpoint of another config or of other records.

    Args:
        among_others: if the run has not begun, the newest checkpoint of all runs of this name is checked instead.

    Raises:
        InputError: with each key that differs.
    """
    found = run.newest()
    if found is None and among_others and not (run.directory / CONFIG).exists():
        runs = run.directory.parent.glob(f"{run.config.name}-*")
        named = [path for path in runs if path.name.rpartition("-")[0] == run.config.name]
        others = filter(None, (checkpoint.newest(path / "checkpoints") for path in named))
        found = max(others, key=lambda path: path.stat().st_mtime, default=None)
    if found is None:
        return
    written = checkpoint.load_state(found).inputs
    if written != run.inputs:
        todo = (
            "to continue this run, undo the change; to start a new run, omit --resume; "
            "to start a new run from this checkpoint, use --from"
        )
        if found.parents[1] == run.directory:
            todo = "start over with --fresh, which removes it"
        expected = "the config and records that this checkpoint was trained with"
        raise InputError(found, expected=expected, found=differences(written, run.inputs), todo=todo)
