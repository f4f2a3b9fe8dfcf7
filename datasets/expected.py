"""What published data sets hold, for `mae data validate --expect`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from datasets import imagenet


class Expected(NamedTuple):
    """Counts of a data set as published, and its class names."""

    train: int
    val: int
    classes: int
    class_names: Callable[[], tuple[str, ...]]


EXPECTED = {
    "imagenet-1k": Expected(imagenet.TRAIN_IMAGES, imagenet.VAL_IMAGES, imagenet.CLASSES, imagenet.synsets),
}
