"""Stage validate: a manifest row for every file of the data root."""

from __future__ import annotations

from pathlib import Path

from datasets.validate import Validation, validation_directory
from datasets.validate import validate as validate_images
from mae.config import DataConfig
from tasks.stage import markdown, stage_task, table, unchanged


@stage_task("check every image", timeout_hours=24)
def validate(root: Path, workspace: Path, data: DataConfig) -> Validation:
    """Validate the images under `root` into the workspace."""
    out = validation_directory(workspace, root, name=data.name, val_share=data.val_share)
    result = validate_images(root, out, val_share=data.val_share, name=data.name)
    markdown("validation", counts(result))
    return result


def intact(result: Validation) -> bool:
    """Whether the manifest is there and unchanged."""
    return unchanged(result.directory / "manifest.parquet", result.manifest_digest)


def counts(result: Validation) -> str:
    """What was found, as markdown: images of each split, then the rows that are not plainly ok."""
    rows: list[tuple[object, ...]] = [("train", f"{result.train:,}"), ("val", f"{result.val:,}")]
    rows += [(status, f"{count:,}") for status, count in sorted(result.faults.items())]
    return (
        f"`{result.root}`: {len(result.classes)} classes. Every file: `{result.directory}/manifest.parquet`"
        f"\n\n{table(('rows', 'count'), rows)}"
    )
