"""Stage rank-table: the file that assigns a rank to each device of each server."""

from __future__ import annotations

from pathlib import Path

from datasets.base.digests import value_digest
from mae.cluster.inventory import cluster_table, load_cluster
from mae.cluster.rank_table import RankTableFile, check, generate, local_table
from mae.config.sections import DeviceConfig
from tasks.stage import markdown, stage_task, table, unchanged


@stage_task("make and check the rank table", timeout_hours=1)
def rank_table(workspace: Path, device: DeviceConfig, cluster: Path | None) -> RankTableFile:
    """Write and check the table of an inventory's servers, of this server's NPUs, or of the ranks of a CPU run."""
    made = _made(workspace / "rank_tables", device, cluster)
    checked = check(made.path)
    warnings = sorted({*made.warnings, *checked.warnings})
    result = checked.model_copy(update={"reused": made.reused, "warnings": warnings})
    markdown("rank-table", contents(result))
    return result


def intact(result: RankTableFile) -> bool:
    """Return whether the table exists and is unchanged."""
    return unchanged(result.path, result.digest)


def contents(result: RankTableFile) -> str:
    """Return the numbers of servers and ranks and the warnings, as markdown."""
    summary = table(("servers", "ranks"), [(result.servers, result.ranks)])
    return "\n".join([f"`{result.path}`", "", summary, "", *(f"- {warning}" for warning in result.warnings)])


def _made(folder: Path, device: DeviceConfig, cluster: Path | None) -> RankTableFile:
    if cluster is not None:
        inventory = load_cluster(cluster)
        name = f"{cluster.stem}-{value_digest(inventory.model_dump(mode='json'))}"
        return cluster_table(inventory, folder / name / "rank_table.json")
    if device.target == "Ascend":
        return generate(folder / f"this-server-{device.ranks}", devices=list(range(device.ranks)))
    return local_table(folder / f"local-{device.ranks}" / "rank_table.json", device.ranks)
