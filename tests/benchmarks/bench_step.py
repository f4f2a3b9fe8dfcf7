"""Time of a pre-training step of the demo's model: alone, with kernels side by side, and as one of two ranks.

    python -m tests.benchmarks.bench_step

Prints the median, minimum and maximum of 40 steps in milliseconds, each case in processes of its own, the cases in turn
for three rounds. Not a test: no number is checked.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

STEPS, ROUNDS = 40, 3
CASES = {
    "one rank": {"ranks": 1},
    "one rank, MindSpore's own threading": {"ranks": 1, "plain": 1},
    "two ranks, pinned": {"ranks": 2},
    "two ranks, not pinned": {"ranks": 2, "plain": 1},
}


def step_times(plain: bool, ranks: int) -> list[float]:
    """Seconds of each step of this rank."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor

    from datasets.batches.batches import Batch
    from mae.config.load import load_config
    from mae.device.context import setup
    from mae.training.task import Place, build_job
    from mae.training.update import Update

    if plain:
        ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
        rank = int(os.environ["RANK_ID"])
    else:
        rank = setup("CPU", ranks=ranks)
    config = load_config("configs/demo.yaml", [f"device.ranks={ranks}"])
    job = build_job(config, classes=[])
    update = Update(job.loss, job.optimizer, ranks=ranks, accum_iter=1)
    images = np.random.default_rng(rank).integers(0, 256, (config.pretrain.batch_size, 28, 28, 3), dtype=np.uint8)
    arrays = job.inputs(Batch(images, np.zeros(0), np.zeros(0)), Place(0, 0, 0, rank))
    times = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        update(Tensor(1e-3, ms.float32), *map(Tensor, arrays)).asnumpy()
        times.append(time.perf_counter() - started)
    return times[1:]  # the first one compiles


def main() -> None:
    """Run the cases in turn and print a line each."""
    from statistics import median

    from mae.launch.ranks import run_ranks

    found: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, case in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                command = ["-m", "tests.benchmarks.bench_step", str(case["ranks"]), str(case.get("plain", 0))]
                run_ranks(command, ranks=case["ranks"], log_dir=Path(folder, "logs"), run_dir=Path(folder))
                lines = Path(folder, "logs", "rank_0.log").read_text().splitlines()
            found[name] += [float(line.split()[1]) for line in lines if line.startswith("step ")]
    for name, times in found.items():
        ms_ = [1e3 * t for t in times]
        print(f"{name:40s} median {median(ms_):6.1f} ms   min {min(ms_):6.1f}   max {max(ms_):6.1f}   n {len(ms_)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for seconds in step_times(plain=sys.argv[2] == "1", ranks=int(sys.argv[1])):
            print(f"step {seconds:.6f}")
    else:
        sys.exit(main())
