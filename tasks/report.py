"""Stage report: one page about a run."""

from __future__ import annotations

from pathlib import Path

from mae.report.page import Report
from mae.report.page import report as write_report
from tasks.stage import markdown, stage_task, unchanged


@stage_task("write the report", timeout_hours=1)
def report(run_dir: Path) -> Report:
    """Write the report of a run from the files of its run directory."""
    result = write_report(run_dir)
    markdown("report", f"`{result.path}`")
    return result


def intact(result: Report) -> bool:
    """Return whether the page exists and is unchanged."""
    return unchanged(result.path, result.digest)
