"""Which servers and NPUs a job runs on: the cluster inventory, HCCL rank tables, their rules, `hccn_tool`.

Read inventory.py first: a training job calls it.
"""

from __future__ import annotations

from mae.cluster.inventory import check_inventory, count_servers, job_table, make_table
from mae.cluster.rank_table import RankTableFile, check

__all__ = ["RankTableFile", "check", "check_inventory", "count_servers", "job_table", "make_table"]
