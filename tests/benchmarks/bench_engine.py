"""What the training loop adds to the compiled step of a ViT-B/16, on this CPU, and what a step costs the host.

    python -m tests.benchmarks.bench_engine [--windows 7] [--batch 8]        needs scikit-image (`make peers`)

One process, one compiled update, two loops in turn: the engine's own, with records of 110 KB JPEGs read, decoded and
cropped, masks drawn, the learning rate set and metrics written; and the bare update on a batch that is there already,
whose result is awaited once a window. A window is as many steps as lie between two readings of the loss. Prints seconds
a step as medians with minimum and maximum, and the median ratio of neighbouring windows.

What the host does per step, on any device, is the engine's loop with batches that are there already and a device that
is done at once: masks for 64 images, tensors, the schedule, metrics. Not a test: no number is checked.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from datasets.batches import Batch
from mae.config.sections import Config
from mae.data import prepare
from mae.device.context import setup
from mae.training import engine
from mae.training.metrics import Metrics
from mae.training.task import Job, Place, build_job
from mae.training.update import Report
from tests.benchmarks.photos import photos

HOST_BATCH = 64


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
        batch = next(engine.rank_batches(job, config, [0], 0, start=0))
        inputs = [Tensor(array) for array in job.inputs(batch, Place(0, 0, 0))]
        rate = Tensor(1e-6, ms.float32)
        began = time.perf_counter()
        update.compile(rate, *inputs)
        print(f"compiled in {time.perf_counter() - began:.0f} s")

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

        window("engine"), window("bare update")  # settle
        for number in range(options.windows):
            for loop in sorted(found, reverse=number % 2 == 1):
                found[loop].append(window(loop))
        host = [1e3 * host_seconds(job, config) for _ in range(options.windows)]
    for loop, times in found.items():
        spread = f"{min(times):.4f} to {max(times):.4f}, n {len(times)}"
        print(f"{loop:12s} {statistics.median(times):.4f} s a step ({spread})")
    spread = f"{min(host):.2f} to {max(host):.2f}"
    print(f"the host's work is {statistics.median(host):.2f} ms a step of {HOST_BATCH} images ({spread})")
    ratios = [e / b for e, b in zip(*found.values(), strict=True)]
    print(f"the engine adds {100 * (statistics.median(ratios) - 1):.1f} % ({_percent(min(ratios), max(ratios))})")


def host_seconds(job: Job, config: Config) -> float:
    """Per step, over 100 steps, of the engine's loop where neither device nor data take time."""
    side, steps = job.model.config.image_size, 100
    images = np.zeros((HOST_BATCH, side, side, 3), np.uint8)
    ready = Batch(images, np.zeros(HOST_BATCH, np.int32), np.zeros(HOST_BATCH, np.int64))
    result = Tensor(np.array(Report(0.5, 1.0, 1.0, 0, 0, False), np.float32))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "rank_batches", lambda *_, **__: itertools.repeat(ready))
        metrics = Metrics(Path(name), config, rank=0, step=0)
        loop = engine._updates(Path(name), job, lambda *_: result, config, 0, 0, metrics)  # type: ignore[arg-type]
        began = time.perf_counter()
        for _ in itertools.islice(loop, steps):
            pass
        return (time.perf_counter() - began) / steps


def _percent(*ratios: float) -> str:
    return " to ".join(f"{100 * (ratio - 1):.1f}" for ratio in ratios)


if __name__ == "__main__":
    main()
