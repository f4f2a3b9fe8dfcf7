"""Learning-rate schedule of the published recipes."""

from __future__ import annotations

import math


def lr_at(epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, epochs: int) -> float:
    """Return the learning rate at a fractional epoch: linear from 0 in the warm-up, then half a cosine to min_lr.

    Set before every iteration from epoch + step / steps_per_epoch, as upstream does.
    """
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
