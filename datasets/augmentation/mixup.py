"""Mixup and cutmix of a batch with its reverse, as one map of how much of each pixel stays (timm's batch mode)."""

from __future__ import annotations

import numpy as np

SWITCH = 0.5  # probability of cutmix if both are on


def keep_map(rng: np.random.Generator, shape: tuple[int, int], *, mixup: float, cutmix: float) -> np.ndarray:
    """Return the share of each pixel that an image keeps, (H, W) float32; the rest comes from the other image.

    Mixup (Zhang et al. 2018) keeps the same share everywhere, drawn from Beta(mixup, mixup). Cutmix (Yun et al. 2019)
    keeps all but a box. Its area is about 1 minus a share from Beta(cutmix, cutmix). Its centre is anywhere in the
    image, and the border cuts it off. The map's mean is the share of the image's own label.

    Args:
        rng: source of the random numbers.
        shape: height and width of the images.
        mixup, cutmix: 0 turns one off; one of them is on.
    """
    height, width = shape
    choice, lam_mix, lam_cut = rng.random(), rng.beta(mixup or 1, mixup or 1), rng.beta(cutmix or 1, cutmix or 1)
    row, column = int(rng.integers(height)), int(rng.integers(width))
    if mixup and (not cutmix or choice >= SWITCH):
        return np.full(shape, lam_mix, np.float32)
    keep = np.ones(shape, np.float32)
    half_height, half_width = (int(side * np.sqrt(1 - lam_cut)) // 2 for side in shape)
    keep[max(row - half_height, 0) : row + half_height, max(column - half_width, 0) : column + half_width] = 0
    return keep
