"""Batches of images: which samples each rank gets in which step, read from records and augmented.

Read `batches.py` first. MindSpore is imported when the first record is read, and the names below at their first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets.batches.batches import Batch, epoch_order, ordered_batches, steps_per_epoch, train_batches

__all__ = ["Batch", "epoch_order", "ordered_batches", "steps_per_epoch", "train_batches"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("datasets.batches.batches"), name)
