"""Measures the speed of a job's training step and of its image pipeline on this machine, and the step's memory."""

from __future__ import annotations

import functools
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mae.cluster import job_table
from mae.config.load import dump_config
from mae.config.sections import Config
from mae.launch.ranks import run_ranks

SECONDS = 20.0  # duration of the measurement of steps
CORE_IMAGES = 256  # images that a core's rates are measured on
PIPELINE = 0.75  # share of these computations in a stage's time per image; the rest is reading (bench_input.py)


class Rate(NamedTuple):
    """The measured time of an update."""

    images: int  # per rank and update
    seconds: float  # mean per update
    steps: int  # number of updates that were measured
    peak_bytes: int  # peak resident memory of a rank's process


class CoreRates(NamedTuple):
    """Images per second and core of this machine."""

    validated: float
    trained: float  # read, decoded, cropped and flipped for training


def measure(config: Config, classes: int) -> Rate:
    """Run steps of the config's task in new processes, with the config's number of ranks, and return their speed.

    The steps use the config's records, read and augmented as in training, or random images if it has none.

    Raises:
        RanksFailed: a rank died, for example because memory ran out.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(dump_config(config))
        command = ["-m", "mae.planning.rank", name, str(classes), str(SECONDS)]
        device = config.device
        table = job_table(device, None, folder)
        run_ranks(
            command,
            ranks=device.ranks,
            log_dir=folder / "logs",
            run_dir=folder,
            devices=table.devices,
            rank_table=table.content,
            python=device.python,
            owner="mae plan",
        )
        return Rate(**json.loads((folder / "rate.json").read_text()))


@functools.cache
def core_rates(image_shape: tuple[int, int], crop_scale: float) -> CoreRates:
    """Measure the rates on a JPEG of ImageNet's mean size (500 x 375 pixels, 108 kB), in CPU seconds."""
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
    function(0)  # the first call compiles
    began = time.process_time()
    for number in range(CORE_IMAGES):
        function(number)
    return PIPELINE * CORE_IMAGES / (time.process_time() - began)
