"""Every call that differs between MindSpore releases and devices, and the all-reduce of jobs on CPUs.

Read context.py first. MindSpore is imported only when a function needs it.
"""

from __future__ import annotations

from mae.device.context import DeviceHeld, all_mean, check_target, compute_dtype, free_devices, setup

__all__ = ["DeviceHeld", "all_mean", "check_target", "compute_dtype", "free_devices", "setup"]
