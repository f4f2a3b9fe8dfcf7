"""Records to batches: MindDataset pipelines for training and evaluation.

Pixels travel as uint8 and are normalised in the model's graph. N images of image_shape (H, W).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.evaluation import centre_view, decode
from datasets.records import load_index
from datasets.stage import InputError, PathLike


class Batch(NamedTuple):
    """N records as arrays."""

    images: np.ndarray  # (N, H, W, 3) uint8, RGB
    labels: np.ndarray  # (N,) int32
    rows: np.ndarray  # (N,) int32, row of manifest.parquet


def epoch_order(images: int, *, seed: int, epoch: int) -> np.ndarray:
    """Order of the samples in one epoch: a permutation (images,) int64 that depends on seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(images)


def steps_per_epoch(images: int, *, batch_size: int, ranks: int) -> int:
    """Whole global batches in an epoch; what remains of the order is left out, as upstream's drop_last does.

    Raises:
        InputError: not one batch fits.
    """
    steps = images // (batch_size * ranks)
    if steps == 0:
        raise InputError(
            "batch_size",
            expected=f"at most {images} training images in a global batch",
            found=f"{batch_size} (batch_size * accum_iter) x {ranks} ranks = {batch_size * ranks}",
            todo="set a smaller batch_size or accum_iter",
        )
    return steps


def train_batches(
    directory: PathLike,
    *,
    image_shape: tuple[int, int],
    batch_size: int,
    crop_scale: float,
    seed: int,
    epoch: int,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 2,
) -> Iterator[Batch]:
    """One rank's share of an epoch: random resized crop (Pillow's bicubic) and horizontal flip (He et al. 2022, A.1).

    Global batch s is a slice of `epoch_order`, of which rank r takes every `ranks`-th sample from the r-th on: each
    sample is seen once, and the same samples meet in a batch for any number of ranks. The augmentation repeats for the
    same seed, epoch, rank and number of workers.
    """
    import mindspore.dataset as ds  # seconds to import, and not needed to plan an epoch
    from mindspore.dataset import vision

    directory = Path(directory)
    images = load_index(directory).splits["train"].images
    steps = steps_per_epoch(images, batch_size=batch_size, ranks=ranks)
    order = epoch_order(images, seed=seed, epoch=epoch)[: steps * batch_size * ranks]
    mine = order.reshape(steps, batch_size, ranks)[:, :, rank].ravel()
    ds.config.set_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0] >> 1))
    crop = vision.RandomCropDecodeResize(
        image_shape, scale=(crop_scale, 1.0), ratio=(3 / 4, 4 / 3), interpolation=vision.Inter.PILCUBIC
    )
    transforms = [crop, vision.RandomHorizontalFlip()]
    yield from _batches(directory, "train", mine, transforms, batch_size=batch_size, workers=workers)


def ordered_batches(
    directory: PathLike, split: str, *, image_shape: tuple[int, int], crop_pct: float, batch_size: int, workers: int = 2
) -> Iterator[Batch]:
    """Every record of a split once, in stored order, resized and cropped for evaluation; the last batch may be short.

    Python decodes and resizes in `workers` threads: see `datasets.evaluation` for why MindSpore's operators do not.
    """
    directory = Path(directory)
    images = load_index(directory).splits[split].images

    def view(stored: np.ndarray) -> np.ndarray:
        image = decode(stored.tobytes(), where=directory)
        return centre_view(image, image_shape, crop_pct)

    yield from _batches(directory, split, np.arange(images), [view], batch_size=batch_size, workers=workers)


def _batches(
    directory: Path, split: str, order: np.ndarray, transforms: list[Any], *, batch_size: int, workers: int
) -> Iterator[Batch]:
    import mindspore.dataset as ds

    files = [str(directory / shard.file) for shard in load_index(directory).splits[split].shards]
    columns = ["image", "label", "row"]
    data = ds.MindDataset(files, columns, workers, sampler=ds.SubsetSampler(order.tolist()))
    data = data.map(transforms, "image", num_parallel_workers=workers)
    data = data.batch(batch_size)
    for images, labels, rows in data.create_tuple_iterator(num_epochs=1, output_numpy=True):
        yield Batch(images, labels, rows)
