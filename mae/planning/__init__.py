"""Estimates hours, memory, disk and failures of a job before it runs. Read estimate.py first.

rate.py measures the speed of this machine.
"""

from mae.planning.estimate import Estimate, Figure, estimate
from mae.planning.rate import CoreRates, core_rates

__all__ = ["CoreRates", "Estimate", "Figure", "core_rates", "estimate"]
