"""Every call that differs between MindSpore releases and devices, and the all-reduce of jobs on CPUs.

Read context.py first. MindSpore is imported only when a function needs it.
"""

from __future__ import annotations

from mae.device.context import all_mean, check_target, compute_dtype, float_status, seed_initialisers, setup

__all__ = ["all_mean", "check_target", "compute_dtype", "float_status", "seed_initialisers", "setup"]
