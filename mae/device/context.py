"""Every call that differs between devices or MindSpore releases: target, threads, ranks, collectives."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.base.errors import InputError
from mae.config.sections import ComputeConfig, DeviceConfig
from mae.device.shared_mean import SharedMean
from mae.launch.locks import DeviceHeld, holder

if TYPE_CHECKING:
    import numpy as np

DEFAULT_COMPUTE = ComputeConfig()
ASCEND_DEVICES = "/dev"  # the driver makes one character device davinci<N> per NPU here
# Set by the launcher, like RANK_ID: a folder that this server's ranks share, and the number of this rank among them.
LAUNCH_DIR, LOCAL_RANK, LOCAL_RANKS = "MAE_LAUNCH_DIR", "MAE_LOCAL_RANK", "MAE_LOCAL_RANKS"


def check_target(config: DeviceConfig) -> None:
    """Refuse a job for NPUs that this machine does not have, before anything is spent on it.

    This reads only the names of the driver's device files, so it needs no MindSpore.

    Raises:
        InputError: the target is Ascend and this machine has fewer NPUs than the job has ranks.
    """
    if config.target != "Ascend":
        return
    found = len(_npus())
    if found < config.ranks:
        raise InputError(
            "device.target: Ascend",
            expected=f"{config.ranks} Ascend NPUs ({ASCEND_DEVICES}/davinci<N>)",
            found=f"{found} on this machine",
            todo="run on a 910A server with its driver loaded, or try configs/demo.yaml, which runs on any CPU",
        )


def free_devices(target: str, count: int) -> list[int]:
    """Return the numbers of `count` NPUs of this server that no job holds; an empty list on a CPU.

    Raises:
        DeviceHeld: fewer are free.
    """
    if target != "Ascend":
        return []
    holders = {number: holder(number) for number in _npus()}
    free = [number for number, who in holders.items() if who is None]
    if len(free) < count:
        held = "; ".join(f"NPU {number} held by {who}" for number, who in holders.items() if who is not None)
        todo = "wait for that job, or compute on CPUs"
        raise DeviceHeld("NPUs of this server", expected=f"{count} that no job uses", found=held or "none", todo=todo)
    return free[:count]


def _npus() -> list[int]:
    names = (path.name[7:] for path in Path(ASCEND_DEVICES).glob("davinci[0-9]*"))
    return sorted(int(name) for name in names if name.isdigit())


def seed_initialisers(seed: int) -> None:
    """Seed the random numbers that initialise the parameters of the next model."""
    import mindspore as ms
    import numpy as np

    ms.set_seed(seed)
    np.random.seed(seed)  # MindSpore's initialisers also draw from NumPy


def compute_dtype(compute: ComputeConfig) -> Any:
    """Return MindSpore's type for matrix products on this process's device."""
    import mindspore as ms

    name = compute.dtype or ("float16" if ms.get_context("device_target") == "Ascend" else "float32")
    return getattr(ms, name)


def precision_mode(compute: ComputeConfig) -> str:
    """Return the precision mode of Ascend's compiler, whose default differs by product and release.

    `allow_fp32_to_fp16`, the default of a 910A, computes products of float32 matrices in float16, which is the type of
    the model's products anyway. It keeps vector operators in float32 if there is such a kernel. A config that asks for
    float32 products gets `must_keep_origin_dtype`, which keeps all types.
    (MindSpore documentation: device_context.ascend.op_precision.precision_mode.)
    """
    return "must_keep_origin_dtype" if compute.float32_products else "allow_fp32_to_fp16"


def setup(target: str, *, ranks: int, compute: ComputeConfig = DEFAULT_COMPUTE) -> int:
    """Set up MindSpore's graph mode on `target`, connect to the other ranks, and return this process's rank.

    MindSpore connects the ranks if the launcher gave it a rank table or a scheduler. Other ranks are on CPUs of one
    server and share memory, or do not communicate.

    Args:
        ranks: number of ranks in the whole job.
    """
    import mindspore as ms
    from mindspore import communication

    os.environ.pop("MS_COMPILER_CACHE_ENABLE", None)  # a cached graph computes other losses from step 1 on
    ms.set_context(mode=ms.GRAPH_MODE, device_target=target)
    if target == "CPU":
        # Run the kernels of a graph one after the other, and each rank on its own cores. MindSpore's threads spin while
        # they wait, so on shared cores they slow down the threads that compute (tests/benchmarks/bench_step.py).
        cores, local_ranks = sorted(os.sched_getaffinity(0)), int(os.environ.get(LOCAL_RANKS, 1))
        if 1 < local_ranks <= len(cores):
            cores = cores[int(os.environ[LOCAL_RANK]) :: local_ranks]
            os.sched_setaffinity(0, cores)
        ms.set_context(inter_op_parallel_num=1, runtime_num_threads=len(cores))
    else:
        ms.set_context(ascend_config={"precision_mode": precision_mode(compute)})
        if "DEVICE_ID" in os.environ:
            ms.set_context(device_id=int(os.environ["DEVICE_ID"]))
    if ranks == 1:
        return 0
    if not _is_connected():
        return int(os.environ["RANK_ID"])
    communication.init()
    return int(communication.get_rank())


def _is_connected() -> bool:
    """Return whether MindSpore's own collectives connect the ranks of this job."""
    return "RANK_TABLE_FILE" in os.environ or "MS_ROLE" in os.environ


def all_mean(number: int) -> Any:
    """Return a graph operator that averages a flat float32 tensor (n,) over all ranks. Call `setup` first.

    Args:
        number: position of the operator in its graph. All ranks must run their operators in the same order.
    """
    from mindspore import ops

    if _is_connected():
        return collective_mean()
    mean = _shared_mean()

    def shared_mean(terms: np.ndarray) -> np.ndarray:
        return mean(terms, number % 256)

    return ops.Custom(shared_mean, lambda shape: shape, lambda dtype: dtype, "pyfunc")


def collective_mean() -> Any:
    """Return the same operator as `all_mean`, built on MindSpore's own all-reduce (HCCL's on Ascend)."""
    from mindspore import communication, ops

    all_reduce, ranks = ops.AllReduce(), communication.get_group_size()

    def mean(terms: Any) -> Any:
        return all_reduce(terms) / ranks

    return mean


def float_status() -> tuple[Any, Any] | None:
    """Return the operators that clear and read the overflow flags; None on devices that compute inf and NaN.

    A 910A saturates: an overflow gives the largest number and an invalid operation gives 0. CANN's
    aclrtFloatOverflowMode has no other mode for it. Both operators map (8,) int32 to (8,) int32, the status, in which 0
    means no fault. Their input only fixes the order of execution (MindSpore's NPUGetFloatStatusV2).
    """
    import mindspore as ms

    if ms.get_context("device_target") != "Ascend":
        return None
    from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2

    return NPUClearFloatStatusV2(), NPUGetFloatStatusV2()


def waited_for_ranks() -> float | None:
    """Return the seconds that this rank has waited for other ranks; None if MindSpore's all-reduce does the waiting.

    For a job of several ranks, after `setup`.
    """
    return None if _is_connected() else _shared_mean().waited


@functools.cache
def _shared_mean() -> SharedMean:
    rank, ranks = int(os.environ[LOCAL_RANK]), int(os.environ[LOCAL_RANKS])
    return SharedMean(rank, ranks, Path(os.environ[LAUNCH_DIR]))
