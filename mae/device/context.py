"""Everything that differs between devices and MindSpore releases: target, threads, ranks, collectives."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.base.errors import InputError
from mae.config.sections import DEMO_CONFIG, ComputeConfig, DeviceConfig
from mae.device.shared_mean import SharedMean
from mae.launch.process_tree import LAUNCH_DIR

if TYPE_CHECKING:
    import numpy as np

DEFAULT_COMPUTE = ComputeConfig()
ASCEND_DEVICES = "/dev"  # one character device davinci<N> per NPU, made by the driver


def check_target(config: DeviceConfig) -> None:
    """Refuse a job for devices that this machine does not have, before anything is spent on it.

    Looks for the driver's device files only, so it needs no MindSpore.

    Raises:
        InputError: the target is Ascend and fewer NPUs are here than the job has ranks.
    """
    if config.target != "Ascend":
        return
    found = len([path for path in Path(ASCEND_DEVICES).glob("davinci[0-9]*") if path.name[7:].isdigit()])
    if found < config.ranks:
        raise InputError(
            "device.target: Ascend",
            expected=f"{config.ranks} Ascend NPUs ({ASCEND_DEVICES}/davinci<N>)",
            found=f"{found} on this machine",
            todo=f"run on a 910A server with its driver loaded, or try {DEMO_CONFIG}, which runs on any CPU",
        )


def seed_initialisers(seed: int) -> None:
    """Make the parameters of the next model a function of `seed`."""
    import mindspore as ms
    import numpy as np

    ms.set_seed(seed)
    np.random.seed(seed)  # MindSpore's initialisers draw from NumPy too


def compute_dtype(compute: ComputeConfig) -> Any:
    """MindSpore's type of matrix products on this process's device."""
    import mindspore as ms

    name = compute.dtype or ("float16" if ms.get_context("device_target") == "Ascend" else "float32")
    return getattr(ms, name)


def precision_mode(compute: ComputeConfig) -> str:
    """What Ascend's compiler may do to types: its default differs by product and release.

    `allow_fp32_to_fp16`, a 910A's own, makes products of float32 matrices float16 ones, as the model's are anyway, and
    keeps vector operators in float32 unless there is no such kernel. A config with float32 products gets them: there
    `must_keep_origin_dtype` (MindSpore's device_context.ascend.op_precision.precision_mode).
    """
    return "must_keep_origin_dtype" if compute.float32_products else "allow_fp32_to_fp16"


def setup(target: str, *, ranks: int, compute: ComputeConfig = DEFAULT_COMPUTE) -> int:
    """Prepare this process for graph-mode work on `target` and join the other ranks.

    Returns:
        this process's rank.
    """
    import mindspore as ms
    from mindspore import communication

    os.environ.pop("MS_COMPILER_CACHE_ENABLE", None)  # a graph out of that cache has other losses, from step 1 on
    ms.set_context(mode=ms.GRAPH_MODE, device_target=target)
    if target == "CPU":
        # Kernels of one graph run one after the other, and each rank on cores of its own: MindSpore's threads wait by
        # spinning, and side by side they take the cores from those that compute (tests/benchmarks/bench_step.py).
        cores = sorted(os.sched_getaffinity(0))
        if 1 < ranks <= len(cores):
            cores = cores[int(os.environ["RANK_ID"]) :: ranks]
            os.sched_setaffinity(0, cores)
        ms.set_context(inter_op_parallel_num=1, runtime_num_threads=len(cores))
    else:
        ms.set_context(ascend_config={"precision_mode": precision_mode(compute)})
        if "DEVICE_ID" in os.environ:
            ms.set_context(device_id=int(os.environ["DEVICE_ID"]))
    if ranks == 1:
        return 0
    communication.init()
    return int(communication.get_rank())


def all_mean(number: int) -> Any:
    """What averages a flat float32 tensor over all ranks of a job that `setup` has joined, in a graph.

    Args:
        number: of the operator in its graph; all ranks run theirs in the same order.
    """
    import mindspore as ms
    from mindspore import ops

    if ms.get_context("device_target") != "CPU":
        return collective_mean()
    mean = _shared_mean()

    def shared_mean(terms: np.ndarray) -> np.ndarray:
        return mean(terms, number % 256)

    return ops.Custom(shared_mean, lambda shape: shape, lambda dtype: dtype, "pyfunc")


def collective_mean() -> Any:
    """`all_mean` by the device's own all-reduce: HCCL's on Ascend."""
    from mindspore import communication, ops

    all_reduce, ranks = ops.AllReduce(), communication.get_group_size()

    def mean(terms: Any) -> Any:
        return all_reduce(terms) / ranks

    return mean


def float_status() -> tuple[Any, Any] | None:
    """The operators that clear and read the device's flags of floating-point faults; None where numbers tell of them.

    A 910A saturates: what overflows becomes the largest number, and what is no number 0 (CANN's aclrtFloatOverflowMode
    has no other mode for it). Both operators map (8,) int32 to (8,) int32, the status, in which 0 means no fault; what
    they are given only puts them in order (MindSpore's NPUGetFloatStatusV2).
    """
    import mindspore as ms

    if ms.get_context("device_target") != "Ascend":
        return None
    from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2

    return NPUClearFloatStatusV2(), NPUGetFloatStatusV2()


def waited_for_ranks() -> float | None:
    """Seconds that this process has waited for other ranks; None on Ascend, where that lies within calls of the device.

    Of a job of several ranks that `setup` has joined.
    """
    import mindspore as ms

    return _shared_mean().waited if ms.get_context("device_target") == "CPU" else None


@functools.cache
def _shared_mean() -> SharedMean:
    from mindspore import communication

    return SharedMean(communication.get_rank(), communication.get_group_size(), Path(os.environ[LAUNCH_DIR]))
