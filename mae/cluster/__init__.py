"""Which servers and NPUs a job runs on: the cluster inventory, HCCL rank tables, their rules, `hccn_tool`.

Read rank_table.py first. job_table.py is what a training job calls.
"""

from __future__ import annotations

from mae.cluster.inventory import count_servers
from mae.cluster.job_table import check_inventory, job_table, make_table
from mae.cluster.rank_table import RankTableFile, check

__all__ = ["RankTableFile", "check", "check_inventory", "count_servers", "job_table", "make_table"]
