"""Starts ranks and other child processes on this server, watches them, and ends all of them. Locks NPUs.

Read ranks.py first.
"""

from __future__ import annotations

from mae.launch.interpreter import check_interpreter
from mae.launch.locks import holder
from mae.launch.ranks import RanksFailed, reap, run_child, run_ranks

__all__ = ["RanksFailed", "check_interpreter", "holder", "reap", "run_child", "run_ranks"]
