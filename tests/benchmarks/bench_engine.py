"""What the training loop adds to the compiled step of a ViT-B/16, on this CPU.

    python -m tests.benchmarks.bench_engine [--windows 7] [--batch 8]        needs scikit-image (`make peers`)

One process, one compiled update, two loops in turn: `mae.engine`'s own, with records of 110 KB JPEGs read, decoded and
cropped, masks drawn, the learning rate set and metrics written; and the bare update on a batch that is there already,
whose result is awaited once a window. A window is as many steps as lie between two readings of the loss. Prints seconds
a step as medians with minimum and maximum, and the median ratio of neighbouring windows. Not a test: no number is
checked.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from mae import engine
from mae.config import Config
from mae.device import setup
from mae.job import Place, build_job
from mae.metrics import Metrics
from mae.prepare import prepare
from tests.benchmarks.photos import photos


def main() -> None:
    """Time both loops and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    setup("CPU", ranks=1)
    found: dict[str, list[float]] = {"engine": [], "bare update": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = engine.LOG_STEPS * (options.windows + 1)
        photos(folder / "photos" / "all", steps * options.batch * 10 // 9 + 20, seed=0)
        config = Config.model_validate(
            {
                "task": "pretrain",
                "name": "bench",
                "data": {"records": str(prepare(folder / "photos", folder)), "workers": 2},
                "pretrain": {"batch_size": options.batch, "epochs": 800},
            }
        )
        job = build_job(config, classes=["all"])
        update = engine.build_update(config, job)
        training = engine._updates(folder, job, update, config, 0, 0, Metrics(folder, config, rank=0, step=0))
        batch = next(engine.rank_batches(job, config, 0, 0, start=0))
        inputs = [Tensor(array) for array in job.inputs(batch, Place(0, 0, 0))]
        rate = Tensor(1e-6, ms.float32)

        def window(loop: str) -> float:
            started = time.perf_counter()
            for _ in range(engine.LOG_STEPS):
                if loop == "engine":
                    next(training)
                else:
                    result = update(rate, *inputs)
            if loop != "engine":
                result.asnumpy()
            return (time.perf_counter() - started) / engine.LOG_STEPS

        window("engine"), window("bare update")  # compile, and settle
        for number in range(options.windows):
            for loop in sorted(found, reverse=number % 2 == 1):
                found[loop].append(window(loop))
    for loop, times in found.items():
        spread = f"{min(times):.4f} to {max(times):.4f}, n {len(times)}"
        print(f"{loop:12s} {statistics.median(times):.4f} s a step ({spread})")
    ratios = [e / b for e, b in zip(*found.values(), strict=True)]
    print(f"the engine adds {100 * (statistics.median(ratios) - 1):.1f} % ({_percent(min(ratios), max(ratios))})")


def _percent(*ratios: float) -> str:
    return " to ".join(f"{100 * (ratio - 1):.1f}" for ratio in ratios)


if __name__ == "__main__":
    main()
