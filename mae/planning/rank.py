"""The process of a rank that `mae.planning.rate` starts: runs training steps and writes their speed to rate.json."""

from __future__ import annotations

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from datasets.base.files import write_json
from datasets.batches import Batch
from mae.config.load import load_config
from mae.device.context import setup
from mae.launch.ranks import rank_main
from mae.planning.rate import Rate
from mae.training.engine import build_update, rank_batches
from mae.training.task import Job, Place, build_job
from mae.training.update import Accumulate

WARM_UP = 6  # MindSpore's CPU kernels try numbers of threads in their first five steps
MINIMUM, MAXIMUM = 5, 200  # number of steps that are measured


def _run(folder: Path, classes: int, seconds: float) -> None:
    """Run steps for `seconds`, and at least MINIMUM and at most MAXIMUM steps, after WARM_UP steps."""
    config = load_config(folder / "config.yaml")
    rank = setup(config.device.target, ranks=config.device.ranks, compute=config.compute)
    job = build_job(config, classes=[str(number) for number in range(classes)])
    recipe, batches = job.recipe, _batches(job, rank)
    update, lr = build_update(job), Tensor(1e-6, ms.float32)
    accumulate = Accumulate(update) if recipe.accum_iter > 1 else None
    times: list[float] = []
    while len(times) < WARM_UP + MINIMUM or sum(times[WARM_UP:]) < seconds:
        started = time.perf_counter()
        place = Place(0, len(times), 0, rank)
        for _ in range(recipe.accum_iter - 1):
            accumulate(*map(Tensor, job.inputs(next(batches), place)))  # type: ignore[misc]
        update(lr, *map(Tensor, job.inputs(next(batches), place))).asnumpy()
        times.append(time.perf_counter() - started)
        if len(times) >= MAXIMUM + WARM_UP:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if rank == 0:
        kept = times[WARM_UP:]
        rate = Rate(recipe.batch_size * recipe.accum_iter, statistics.fmean(kept), len(kept), peak)
        write_json(folder / "rate.json", rate._asdict())


def _batches(job: Job, rank: int) -> Iterator[Batch]:
    """Yield batches without end."""
    if job.config.data.records is not None:
        yield from rank_batches(job, itertools.count(), rank, start=0)
    rng, size = np.random.default_rng(rank), job.recipe.batch_size
    images = rng.integers(0, 256, (size, *job.model.config.image_shape, 3), dtype=np.uint8)
    labels = rng.integers(0, job.model.config.num_classes or 1, size, dtype=np.int32)
    while True:
        yield Batch(images, labels, labels)


if __name__ == "__main__":
    rank_main(lambda: _run(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
