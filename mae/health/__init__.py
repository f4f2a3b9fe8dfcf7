"""Is this run normal? Rules on its readings, the verdict, and progress while it trains. Read verdict.py first."""

from mae.health.follow import Follower
from mae.health.rules import Band, Finding
from mae.health.verdict import Verdict, judge, load_verdict

__all__ = ["Band", "Finding", "Follower", "Verdict", "judge", "load_verdict"]
