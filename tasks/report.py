"""Stage report: one page about a run."""

from __future__ import annotations

from pathlib import Path

from mae.report import ReportPage
from mae.report import report as write_report
from mae.runs import Run
from tasks.stage import markdown, stage_task


@stage_task("write the report", timeout_hours=1)
def report(run_dir: Path) -> ReportPage:
    """Write the report of a run from the files of its run directory."""
    result = write_report(Run.open(run_dir))
    markdown("report", f"`{result.path}`")
    return result
