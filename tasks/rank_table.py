"""Stage rank-table: write the table that says which rank runs on which device of which server."""

from __future__ import annotations

from pathlib import Path

from mae.cluster import RankTableFile, make_table
from mae.config import DeviceConfig
from tasks.stage import markdown, stage_task


@stage_task("make and check the rank table", timeout_hours=1)
def rank_table(workspace: Path, device: DeviceConfig, cluster: Path | None) -> RankTableFile:
    """Write the table of an inventory's servers, of this server's NPUs, or of a CPU job's ranks."""
    result = make_table(device, workspace / "rank_tables", cluster)
    text = "\n".join([f"`{result.path}`", "", *(f"- {warning}" for warning in result.warnings)])
    markdown("rank-table", text, ("servers", "ranks"), (result.servers, result.ranks))
    return result
