"""Stage validate: write a manifest with a row for each file of the data root."""

from __future__ import annotations

from pathlib import Path

from datasets.base.parallel import apart
from datasets.manifest import MANIFEST
from datasets.validation import Validation, ValidationPlan, ValidationUnit
from mae.config import DataConfig
from mae.data import validation_options
from tasks.stage import markdown, stage_task


@stage_task("list the files", timeout_hours=4)
def plan(root: Path, workspace: Path, data: DataConfig) -> ValidationPlan:
    """List the files under `root` and divide them into units of work."""
    options = validation_options(data)
    out = options.directory(workspace, root, name=data.name)
    return ValidationPlan.make(root, out, options=options, name=data.name)


@stage_task("check every image", timeout_hours=24)
def examine(unit: ValidationUnit) -> int:
    """Examine the files of one unit in a process of its own, and return how many were read."""
    return apart(ValidationUnit.examine, unit)


@stage_task("judge the whole", timeout_hours=4)
def conclude(plan: ValidationPlan, examined: list[int]) -> Validation:
    """Join the results of all units to a validation in the workspace."""
    result = plan.conclude(examined)
    text = f"`{result.root}`: {len(result.classes)} classes. Every file: `{result.directory / MANIFEST}`"
    rows = {"train": result.train, "val": result.val, **dict(sorted(result.faults.items()))}
    markdown("validation", text, ("rows", "count"), *((name, f"{count:,}") for name, count in rows.items()))
    return result
