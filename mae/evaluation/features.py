"""Frozen features: one vector per image of a split, from an encoder that is not trained further, or raw pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from mindspore import Tensor

from datasets.batches import ordered_batches
from mae.config.sections import ModelConfig
from mae.evaluation.protocol import Features, Score, Subject
from mae.model.forward import Encode, normalise_pixels
from mae.model.mae import MaskedAutoencoder, seeded_mae
from mae.model.vit import VisionTransformer
from mae.weights.restore import load_encoder

BATCH = 256
PIXEL_SIDE = 32

Compute = Callable[[np.ndarray], np.ndarray]  # uint8 images (N, H, W, 3) -> features (N, F) float32


def measure_frozen(subject: Subject, pool: str, predict: Callable[[Features, Features], np.ndarray]) -> Iterator[Score]:
    """Yield the score of the pre-trained encoder, of the same encoder with random weights, and of raw pixels.

    Args:
        pool: feature of an image, `cls` or `mean` (see `mae.model.forward.Encode`).
        predict: (features of the training split, of the validation split) -> labels of the validation split (N,).
    """
    pretrained, config = load_encoder(subject.model), subject.config
    size = pretrained.config
    encoders: dict[str, Compute] = {
        "pretrained": encoder_features(pretrained, pool),
        "random": encoder_features(seeded_mae(size, config.seed), pool),
        "pixels": partial(pixel_features, config=size),
    }
    for name, compute in encoders.items():
        train, val = (
            split_features(subject.records, split, size, compute, workers=config.data.workers)
            for split in ("train", "val")
        )
        correct = predict(train, val) == val.labels
        yield Score(encoder=name, top1=float(correct.mean()), images=len(correct), features=val.values.shape[1])


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
    records: Path, split: str, model: ModelConfig, compute: Compute, *, workers: int, limit: int | None = None
) -> Features:
    """Return the features of every record of a split, each exactly once, or of its first `limit` records."""
    batches = ordered_batches(
        records,
        split,
        image_shape=model.image_shape,
        crop_pct=model.crop_pct,
        batch_size=BATCH,
        workers=workers,
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
