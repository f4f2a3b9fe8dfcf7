"""Frozen features: one vector per image of a split, from an encoder that is not trained further, or raw pixels."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from mindspore import Tensor

from datasets.batches import ordered_batches
from datasets.records import load_index
from mae.config.sections import ModelConfig
from mae.device.context import LAUNCH_DIR
from mae.evaluation.protocol import Features, Score, Subject
from mae.model.forward import Encode, normalise_pixels
from mae.model.mae import MaskedAutoencoder, seeded_mae
from mae.model.vit import VisionTransformer
from mae.weights.restore import load_encoder

BATCH = 256
PIXEL_SIDE = 32
LOOK_SECONDS = 0.05  # between two looks for another rank's part

Compute = Callable[[np.ndarray], np.ndarray]  # uint8 images (N, H, W, 3) -> features (N, F) float32


def measure_frozen(
    subject: Subject, pool: str, predict: Callable[[Features, Features], np.ndarray], ranks: int = 1
) -> Iterator[Score]:
    """Yield, in rank 0, the scores of the pre-trained encoder, of the same with random weights, and of raw pixels.

    Args:
        pool: feature of an image, `cls` or `mean` (see `mae.model.forward.Encode`).
        predict: (features of the training split, of the validation split) -> labels of the validation split (N,).
        ranks: number of processes that call this function. They share the computation of the features.
    """
    pretrained, config = load_encoder(subject.model), subject.config
    size = pretrained.config
    encoders: dict[str, Compute] = {
        "pretrained": encoder_features(pretrained, pool),
        "random": encoder_features(seeded_mae(size, config.seed), pool),
        "pixels": partial(pixel_features, config=size),
    }
    for name, compute in encoders.items():
        train, val = (shared_features(subject, split, size, compute, ranks, name) for split in ("train", "val"))
        if train is not None and val is not None:
            correct = predict(train, val) == val.labels
            yield Score(encoder=name, top1=float(correct.mean()), images=len(correct), features=val.values.shape[1])


def shared_features(
    subject: Subject, split: str, model: ModelConfig, compute: Compute, ranks: int, name: str = "features"
) -> Features | None:
    """Return the features of a whole split in rank 0, and None in the other ranks, which compute a part of them.

    The parts are exchanged as files in the launch directory.

    Args:
        ranks: number of processes that call this function, each with its RANK_ID.
        name: of the files, different for each call with the same split.
    """
    rank, workers = int(os.environ.get("RANK_ID", "0")), subject.config.data.workers
    images = load_index(subject.records).splits[split].images
    if rank * BATCH >= images:  # there are fewer batches than ranks
        return None
    mine = split_features(subject.records, split, model, compute, workers=workers, rank=rank, ranks=ranks)
    if ranks == 1:
        return mine
    folder = Path(os.environ[LAUNCH_DIR])
    if rank > 0:
        partial_file = folder / f"{name}-{split}-{rank}.partial.npz"
        np.savez(partial_file, values=mine.values, labels=mine.labels)
        partial_file.rename(folder / f"{name}-{split}-{rank}.npz")
        return None
    values, labels = np.empty((images, mine.values.shape[1]), np.float32), np.empty(images, np.int32)
    for other in range(min(ranks, -(-images // BATCH))):
        part = mine if other == 0 else _received(folder / f"{name}-{split}-{other}.npz")
        places = np.arange(images) // BATCH % ranks == other
        values[places], labels[places] = part
    return Features(values, labels)


def _received(file: Path) -> Features:
    while not file.exists():  # the launcher ends this process if that rank fails
        time.sleep(LOOK_SECONDS)
    with np.load(file) as arrays:
        found = Features(arrays["values"], arrays["labels"])
    file.unlink()
    return found


def encoder_features(model: MaskedAutoencoder | VisionTransformer, pool: str) -> Compute:
    """Return the function from images to an encoder's features, compiled for one batch size."""
    encode = Encode(model, pool)
    encode.set_train(False)
    return in_fixed_batches(lambda images: encode(Tensor(images)).asnumpy())


def pixel_features(images: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Return the pixels (N, F) float32 of uint8 images (N, H, W, 3), normalised as the encoder's input is.

    Sides above PIXEL_SIDE are averaged down to it: a classifier on all pixels of large photos needs too much memory.
    """
    size = images.shape[1]
    side = min(size, PIXEL_SIDE)
    starts = np.arange(side) * size // side
    lengths = np.diff(np.append(starts, size)).astype(np.float32)
    sums = np.add.reduceat(np.add.reduceat(images.astype(np.float32), starts, axis=1), starts, axis=2)
    means = sums / (lengths[:, None] * lengths)[:, :, None]
    return normalise_pixels(means, config).reshape(len(images), -1)


def split_features(
    records: Path,
    split: str,
    model: ModelConfig,
    compute: Compute,
    *,
    workers: int,
    limit: int | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Features:
    """Return the features of a rank's batches of a split, or of its first `limit` records; each image is read once."""
    batches = ordered_batches(
        records,
        split,
        image_shape=model.image_shape,
        crop_pct=model.crop_pct,
        batch_size=BATCH,
        workers=workers,
        rank=rank,
        ranks=ranks,
        limit=limit,
    )
    parts = [(compute(batch.images), batch.labels) for batch in batches]
    return Features(np.concatenate([v for v, _ in parts]), np.concatenate([y for _, y in parts]))


def in_fixed_batches(compute: Compute) -> Compute:
    """Return `compute` for batches of up to BATCH images: short ones are padded, and the padding's results dropped."""

    def padded(images: np.ndarray) -> np.ndarray:
        missing = BATCH - len(images)
        filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images
        return compute(filled)[: len(images)]

    return padded
