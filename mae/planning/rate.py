"""How fast a job's compiled step and its images run on this machine, and what memory it takes: for `mae plan`."""

from __future__ import annotations

import functools
import io
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datasets.base.files import write_json
from mae.config.load import dump_config, load_config
from mae.config.sections import Config
from mae.launch.ranks import rank_main, run_ranks

if TYPE_CHECKING:
    from datasets.batches import Batch
    from mae.training.task import Job

WARM_UP = 6  # MindSpore's CPU kernels try numbers of threads in their first five steps
SECONDS = 20.0  # of measuring, at least MINIMUM steps
MINIMUM, MAXIMUM = 5, 200
CORE_IMAGES = 256  # from which a core's rates are taken
PIPELINE = 0.75  # share of an image's time that this takes in a stage, beside reading (tests/benchmarks/bench_input.py)


class Rate(NamedTuple):
    """Mean time of an update on one rank."""

    images: int  # of one rank in an update
    seconds: float
    steps: int
    peak_bytes: int  # resident, of the rank's process


def measure(config: Config, classes: int) -> Rate:
    """Run the config's task with its own number of ranks, in processes of their own: on its records, read and augmented
    beside the steps as in training, or on random images where it names none.

    Raises:
        RanksFailed: a rank died, of lack of memory for instance.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(dump_config(config))
        ranks = config.device.ranks
        command = ["-m", "mae.planning.rate", name, str(classes)]
        run_ranks(command, ranks=ranks, log_dir=folder / "logs", run_dir=folder, python=config.device.python)
        return Rate(**json.loads((folder / "rate.json").read_text()))


class CoreRates(NamedTuple):
    """Images a second that one core of this machine gets through."""

    validated: float
    trained: float  # read, decoded, cropped, flipped


@functools.cache
def core_rates(image_shape: tuple[int, int], crop_scale: float) -> CoreRates:
    """Of JPEGs of ImageNet's mean size (500 x 375, 108 kB), in seconds of the processor."""
    import numpy as np
    from PIL import Image

    from datasets.augmentation import Augmentation, augmented, draws
    from datasets.images import inspect

    noise = np.random.default_rng(0).integers(0, 256, (94, 125, 3), np.uint8)
    stored, out = io.BytesIO(), np.empty((*image_shape, 3), np.uint8)
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(stored, "JPEG", quality=93)
    content, drawn = np.frombuffer(stored.getvalue(), np.uint8), draws(0, CORE_IMAGES, seed=0, epoch=0)
    how = Augmentation(crop_scale)
    validated = _rate(lambda _: inspect(stored.getvalue()))
    trained = _rate(lambda n: augmented(content, drawn[n], how, out, where="plan"))
    return CoreRates(validated, trained)


def _rate(function: Callable[[int], object]) -> float:
    function(0)  # compiles
    began = time.process_time()
    for number in range(CORE_IMAGES):
        function(number)
    return PIPELINE * CORE_IMAGES / (time.process_time() - began)


def _run(folder: Path, classes: int) -> None:
    import mindspore as ms
    from mindspore import Tensor

    from mae.device.context import setup
    from mae.training.task import Place, build_job, build_update
    from mae.training.update import Accumulate

    config = load_config(folder / "config.yaml")
    rank = setup(config.device.target, ranks=config.device.ranks, compute=config.compute)
    job = build_job(config, classes=[str(number) for number in range(classes)])
    recipe, batches = job.recipe, _batches(job, rank)
    update, lr = build_update(job), Tensor(1e-6, ms.float32)
    accumulate = Accumulate(update) if recipe.accum_iter > 1 else None
    times: list[float] = []
    while len(times) < WARM_UP + MINIMUM or sum(times[WARM_UP:]) < SECONDS:
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
    """Batches without end."""
    import numpy as np

    from datasets.batches import Batch
    from mae.training.engine import rank_batches

    if job.config.data.records is not None:
        yield from rank_batches(job, itertools.count(), rank, start=0)
    rng, size = np.random.default_rng(rank), job.recipe.batch_size
    images = rng.integers(0, 256, (size, *job.model.config.image_shape, 3), dtype=np.uint8)
    labels = rng.integers(0, job.model.config.num_classes or 1, size, dtype=np.int32)
    while True:
        yield Batch(images, labels, labels)


if __name__ == "__main__":
    rank_main(lambda: _run(Path(sys.argv[1]), int(sys.argv[2])))
