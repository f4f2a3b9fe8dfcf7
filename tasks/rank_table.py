"""Stage rank-table: write the table that says which rank runs on which device of which server."""

from __future__ import annotations

from pathlib import Path

from mae.cluster import RankTableFile, make_table
from mae.config import DeviceConfig
from tasks.stage import markdown, stage_task, table, unchanged


@stage_task("make and check the rank table", timeout_hours=1)
def rank_table(workspace: Path, device: DeviceConfig, cluster: Path | None) -> RankTableFile:
    """Write the table of an inventory's servers, of this server's NPUs, or of a CPU job's ranks."""
    result = make_table(device, workspace / "rank_tables", cluster)
    markdown("rank-table", contents(result))
    return result


def intact(result: RankTableFile) -> bool:
    """Whether the table is there and unchanged."""
    return unchanged(result.path, result.digest)


def contents(result: RankTableFile) -> str:
    """Numbers of servers and ranks, and the warnings, as markdown."""
    summary = table(("servers", "ranks"), [(result.servers, result.ranks)])
    return "\n".join([f"`{result.path}`", "", summary, "", *(f"- {warning}" for warning in result.warnings)])
