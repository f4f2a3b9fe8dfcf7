"""mae-rank-table: the HCCL rank table of an inventory's servers, or of this server."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows import stages as run
from flows.job import REAL_JOB
from flows.stages import finished, workspace_path
from mae.cluster import RankTableFile
from mae.config import load_config


@flow(name="mae-rank-table")
def mae_rank_table(
    config: str = REAL_JOB,
    overrides: list[str] = [],  # noqa: B006 (the UI's form shows it; nothing changes it)
    cluster: str | None = None,
) -> RankTableFile:
    """Make and check the rank table of a job.

    Args:
        cluster: inventory of the servers that train together. Default: this server.
    """
    device = load_config(config, overrides).device
    inventory = Path(cluster) if cluster is not None else None
    return finished(run.rank_table, workspace_path(), device, inventory)
