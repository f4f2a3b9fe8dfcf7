"""Stage sample-data: the shipped images as folders."""

from __future__ import annotations

from pathlib import Path

from datasets.sample import SampleData, sample_root, unpack_sample
from tasks.stage import stage_task


@stage_task("unpack the sample", timeout_hours=1)
def unpack(workspace: Path) -> SampleData:
    """Unpack the shipped sample into the workspace."""
    return unpack_sample(sample_root(workspace))
