"""Frozen features of a split: what an encoder that is not trained further makes of every image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mindspore import Tensor, nn

from datasets.batches import ordered_batches
from mae.config.sections import ModelConfig
from mae.device.context import seed_initialisers
from mae.model.mae import MaskedAutoencoder
from mae.model.vit import VisionTransformer
from mae.training.update import Normalise, normalise_pixels

BATCH = 256
PIXEL_SIDE = 32


class Features(NamedTuple):
    """A split as an encoder sees it, in stored order."""

    values: np.ndarray  # (N, F) float32
    labels: np.ndarray  # (N,) int32


class Encode(nn.Cell):
    """uint8 images (N, H, W, 3) -> one feature vector (N, D) each: the cls token, or the mean of the patch tokens."""

    def __init__(self, model: MaskedAutoencoder | VisionTransformer, pool: str) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.normalise = Normalise(model.config)
        self.mean = pool == "mean"

    def construct(self, images: Tensor) -> Tensor:
        tokens = self.model.encode(self.normalise(images))
        if self.mean:
            return tokens[:, 1:].mean(1)
        return tokens[:, :1].reshape(tokens.shape[0], -1)


def encoder_features(model: MaskedAutoencoder | VisionTransformer, pool: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function uint8 images -> features of an encoder, compiled for one batch size."""
    encode = Encode(model, pool)
    encode.set_train(False)
    return in_fixed_batches(lambda images: encode(Tensor(images)).asnumpy())


def pixel_features(images: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Raw pixels (N, F) of uint8 images (N, H, W, 3), normalised as the config's encoder sees them.

    Sides above PIXEL_SIDE are averaged down to it: a probe on all pixels of large photos would fit in no memory.
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
    compute: Callable[[np.ndarray], np.ndarray],
    *,
    workers: int,
    limit: int | None = None,
) -> Features:
    """Features of every record of a split, each exactly once, or of its first `limit` records."""
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


def in_fixed_batches(compute: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Let a graph of one static batch size take a short last batch: fill it up, drop the filling's results."""

    def padded(images: np.ndarray) -> np.ndarray:
        missing = BATCH - len(images)
        filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images
        return compute(filled)[: len(images)]

    return padded


def seeded_mae(config: ModelConfig, seed: int) -> MaskedAutoencoder:
    """A MAE at its random initialisation."""
    seed_initialisers(seed)
    return MaskedAutoencoder(config)
