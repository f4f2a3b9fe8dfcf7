"""Starts a job's ranks as child processes of this server, watches them, and ends all of them.

Read ranks.py first.
"""

from __future__ import annotations

from mae.launch.process_tree import started, with_variable
from mae.launch.ranks import RanksFailed, rank_main, reap, run_ranks

__all__ = ["RanksFailed", "rank_main", "reap", "run_ranks", "started", "with_variable"]
