"""The history of evaluations: one Parquet file each under <workspace>/history/evaluations, which is never changed."""

from __future__ import annotations

from pathlib import Path

from mae.evaluation import Evaluation
from mae.evaluation import append as append_rows
from tasks.stage import stage_task


@stage_task("remember the evaluation", timeout_hours=1)
def append(run: str, evaluation: Evaluation, workspace: Path) -> Path:
    """Write a row for each encoder that an evaluation measured, and return the new file."""
    return append_rows(run, evaluation, workspace)
