"""Records to batches: MindDataset reads, and threads of this process decode and crop images into the batch.

Batches have N images of image_shape (H, W). Pixels are uint8; the model's graph normalises them.

MindDataset's own operators are not used. Its random crops come from one generator per worker of the process, so they
change with the number of workers and cannot be resumed. Python functions in its `map` are slower.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from datasets.augmentation.crop import Augmentation, augmented, draws
from datasets.augmentation.erasing import Erasing, erase
from datasets.augmentation.operations import RandAugment, rand_augmented
from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.images.view import centre_view, decode
from datasets.records.index import load_index

CHUNK = 4  # images that a thread takes at a time
READERS = 2  # MindRecord threads; one reads 14,000 records a second


class Batch(NamedTuple):
    """N images with their labels."""

    images: np.ndarray  # (N, H, W, 3) uint8, RGB
    labels: np.ndarray  # (N,) int32
    samples: np.ndarray  # (N,) int64, numbers of the records, counted through the split's shards in the index's order


def epoch_order(images: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the samples in one epoch: a permutation, (images,) int64, of seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(images)


def steps_per_epoch(images: int, *, batch_size: int, ranks: int, key: str = "batch_size") -> int:
    """Return the number of whole global batches in an epoch; the rest is left out, as with upstream's drop_last.

    Args:
        images: training images.
        batch_size: of one rank.
        ranks: number of ranks.
        key: of the config, for errors.

    Raises:
        InputError: there are fewer images than one global batch has.
    """
    steps = images // (batch_size * ranks)
    if steps == 0:
        raise InputError(
            key,
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
    epochs: Iterable[int],
    rank: int = 0,
    ranks: int = 1,
    workers: int = 2,
    accum_iter: int = 1,
    start_step: int = 0,
    clipped: bool = False,
    changes: RandAugment | None = None,
    erasing: Erasing | None = None,
) -> Iterator[Batch]:
    """Yield one rank's training batches: random resized crop and horizontal flip (He et al. 2022, A.1).

    Global batch s of an epoch is a slice of `epoch_order`. Rank r takes every `ranks`-th sample of it, starting with
    number r. So each sample is used once, and a global batch has the same samples for any number of ranks. An image's
    pixels depend on `seed`, epoch and its place in the order. Global batches are therefore the same, bit for bit, for
    any number of ranks and workers and from any `start_step` on.

    Args:
        directory: of the records.
        image_shape: height and width in pixels.
        batch_size: of one rank.
        crop_scale, clipped: see `Augmentation`.
        seed: of order and augmentation.
        epochs: their numbers. The first batches of an epoch are prepared during the last ones of the previous.
        rank, ranks: number of this rank, and of all ranks.
        workers: decoding threads.
        accum_iter: batches of one update; an epoch has a whole number of updates.
        start_step: number of batches of the first epoch to skip; they are not read.
        changes, erasing: RandAugment and random erasing of the cropped image, in this order; None: without.
    """
    directory = Path(directory)
    images = load_index(directory).splits["train"].images
    steps = steps_per_epoch(images, batch_size=batch_size * accum_iter, ranks=ranks) * accum_iter
    how = Augmentation(crop_scale, clipped)

    def one(epoch: int, first: int) -> Pass:
        order = epoch_order(images, seed=seed, epoch=epoch)
        places = np.arange(steps * batch_size * ranks).reshape(steps, batch_size, ranks)[first:, :, rank]

        def prepare(number: int) -> View:
            chosen = places[number]
            drawn = draws(chosen[0], chosen[-1] + 1, seed=seed, epoch=epoch)[::ranks]

            def view(content: np.ndarray, place: int, out: np.ndarray) -> None:
                augmented(content, drawn[place], how, out, where=f"{directory}: train record {order[chosen[place]]}")
                if changes is not None:
                    rand_augmented(out, np.random.default_rng([seed, epoch, 2, chosen[place]]), changes)
                if erasing is not None:
                    erase(out, np.random.default_rng([seed, epoch, 3, chosen[place]]), erasing)

            return view

        return Pass(order[places.ravel()], prepare)

    passes = (one(epoch, start_step if number == 0 else 0) for number, epoch in enumerate(epochs))
    return _batches(directory, "train", passes, image_shape, batch_size, workers)


def ordered_batches(
    directory: PathLike,
    split: str,
    *,
    image_shape: tuple[int, int],
    crop_pct: float,
    batch_size: int,
    workers: int = 2,
    rank: int = 0,
    ranks: int = 1,
    limit: int | None = None,
) -> Iterator[Batch]:
    """Yield every record of a split once, in stored order, resized and cropped for evaluation.

    The last batch may be smaller. Rank r reads the batches r, r + ranks, r + 2 * ranks, ..., so a batch has the same
    images for any number of ranks. With more ranks than batches some ranks have none.

    Args:
        directory: of the records.
        split: train or val.
        image_shape: height and width in pixels.
        crop_pct: see `datasets.images.view.centre_view`.
        batch_size: of one rank.
        workers: decoding threads.
        rank, ranks: number of this rank, and of all ranks.
        limit: read the first `limit` records only.
    """
    directory = Path(directory)
    images = load_index(directory).splits[split].images
    images = images if limit is None else min(images, limit)
    mine = np.flatnonzero(np.arange(images) // batch_size % ranks == rank)

    def prepare(number: int) -> View:
        def view(content: np.ndarray, place: int, out: np.ndarray) -> None:
            where = f"{directory}: {split} record {mine[number * batch_size + place]}"
            out[:] = centre_view(decode(content.tobytes(), where=where), image_shape, crop_pct)

        return view

    return _batches(directory, split, [Pass(mine, prepare)], image_shape, batch_size, workers)


View = Callable[[np.ndarray, int, np.ndarray], None]  # content of a record, its place in the batch, (H, W, 3) to fill


class Pass(NamedTuple):
    """The samples of one pass over the data."""

    samples: np.ndarray  # in their order
    prepare: Callable[[int], View]  # from a batch's number to the function that fills in its images


def _batches(
    directory: Path,
    split: str,
    passes: Iterable[Pass],
    image_shape: tuple[int, int],
    batch_size: int,
    workers: int,
) -> Iterator[Batch]:
    """Yield the batches of passes, filled by threads. At least two batches are prepared ahead."""
    ahead = max(2, -(-2 * workers * CHUNK // batch_size))
    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(workers, "images") as pool:
        pending: deque[tuple[Batch, list[Future[None]]]] = deque()

        def start(records: Iterator[tuple[np.ndarray, np.ndarray]], chosen: np.ndarray, view: View) -> None:
            batch = Batch(np.empty((len(chosen), *image_shape, 3), np.uint8), np.empty(len(chosen), np.int32), chosen)
            rows = reader.submit(lambda: list(itertools.islice(records, len(chosen))))
            parts = [slice(n, n + CHUNK) for n in range(0, len(chosen), CHUNK)]
            pending.append((batch, [pool.submit(_fill, batch, rows, part, view) for part in parts]))

        try:
            for samples, prepare in passes:
                records = _records(directory, split, samples)
                for number, first in enumerate(range(0, len(samples), batch_size)):
                    start(records, samples[first : first + batch_size], prepare(number))
                    if len(pending) > ahead:
                        yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())
        finally:
            for _, parts in pending:
                for part in parts:
                    part.cancel()


def _fill(batch: Batch, rows: Future[list[Any]], part: slice, view: View) -> None:
    for place, (content, label) in enumerate(rows.result()[part], part.start):
        batch.labels[place] = label.item()
        view(content.view(np.uint8), place, batch.images[place])


def _finished(batch: Batch, parts: list[Future[None]]) -> Batch:
    for part in parts:
        part.result()
    return batch


def _records(directory: Path, split: str, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield content and label of the given records, in that order.

    Raises:
        InputError: the shards have not as many records as the index says. MindDataset would crash at a missing one.
    """
    import mindspore.dataset as ds  # slow to import, and not needed to plan an epoch

    part = load_index(directory).splits[split]
    files = [str(directory / shard.file) for shard in part.shards]
    found = ds.MindDataset(files, ["label"]).get_dataset_size()
    if found != part.images:
        expected, todo = f"{part.images} records, as index.json says", "run `mae data check`"
        raise InputError(directory / split, expected=expected, found=str(found), todo=todo)
    data = ds.MindDataset(files, ["image", "label"], READERS, sampler=ds.SubsetSampler(samples.tolist()))
    return iter(data.create_tuple_iterator(num_epochs=1, output_numpy=True))
