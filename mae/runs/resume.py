"""Which checkpoint a run may continue from."""

from __future__ import annotations

import logging
from typing import Optional

from datasets.base.errors import InputError
from mae.runs import checkpoint
from mae.runs.inputs import differences
from mae.runs.run import CONFIG, Run

logger = logging.getLogger(__name__)


def check_resumed(run: Run, release: Optional[str], *, among_others: bool) -> None:
    """Refuse to continue from a checkpoint of another config or of other records. Warn of another MindSpore.

    Args:
        release: of MindSpore, which the ranks will use; none: unknown.
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
    state = checkpoint.load_state(found)
    written = state.inputs
    if written != run.inputs:
        todo = (
            "to continue this run, undo the change; to start a new run, omit --resume; "
            "to start a new run from this checkpoint, use --from"
        )
        if found.parents[1] == run.directory:
            todo = "start over with --fresh, which removes it"
        expected = "the config and records that this checkpoint was trained with"
        raise InputError(found, expected=expected, found=differences(written, run.inputs), todo=todo)
    if release is not None and state.mindspore not in (None, release):
        wrote = f"MindSpore {state.mindspore} wrote this checkpoint, and {release} continues"
        logger.warning("%s: %s; results differ by rounding", found, wrote)
