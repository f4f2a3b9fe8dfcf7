"""Stage validate: write a manifest with a row for each file of the data root."""

from __future__ import annotations

from pathlib import Path

import datasets.validation.parts
import datasets.validation.validate
from datasets.base.parallel import apart
from datasets.validation.parts import Examined, Unit
from datasets.validation.plan import Plan
from datasets.validation.validate import Validation, validation_directory
from mae.config.sections import DataConfig
from mae.data import validation_options
from tasks.stage import markdown, stage_task, table, unchanged


@stage_task("list the files", timeout_hours=4)
def plan(root: Path, workspace: Path, data: DataConfig) -> Plan:
    """List the images under `root` and divide them into units of work."""
    options = validation_options(data)
    out = validation_directory(workspace, root, name=data.name, options=options)
    return datasets.validation.validate.plan(root, out, options=options, name=data.name)


@stage_task("check every image", timeout_hours=24)
def examine(unit: Unit) -> Examined:
    """Examine the files of one unit in a separate process."""
    return apart(datasets.validation.parts.examine, unit)


@stage_task("judge the whole", timeout_hours=4)
def conclude(plan: Plan, results: list[Examined]) -> Validation:
    """Join the results of all units to a validation in the workspace."""
    result = datasets.validation.validate.conclude(plan, results)
    markdown("validation", counts(result))
    return result


def intact(result: Validation) -> bool:
    """Return whether the manifest exists and is unchanged."""
    return unchanged(result.directory / "manifest.parquet", result.manifest_digest)


def counts(result: Validation) -> str:
    """Return the number of images of each split and of each kind of fault, as markdown."""
    rows: list[tuple[object, ...]] = [("train", f"{result.train:,}"), ("val", f"{result.val:,}")]
    rows += [(status, f"{count:,}") for status, count in sorted(result.faults.items())]
    return (
        f"`{result.root}`: {len(result.classes)} classes. Every file: `{result.directory}/manifest.parquet`"
        f"\n\n{table(('rows', 'count'), rows)}"
    )
