"""How training images are changed at random: crop and flip, RandAugment, random erasing, mixup and cutmix.

Read `crop.py` first. The names below are loaded at their first use, because the crop needs numba.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets.augmentation.crop import Augmentation, augmented, draws
    from datasets.augmentation.erasing import Erasing
    from datasets.augmentation.mixup import keep_map
    from datasets.augmentation.operations import rand_augment

# No module may have the name of what it gives: importing it would replace the function with the module.
_MODULES = {
    "Augmentation": "crop",
    "Erasing": "erasing",
    "augmented": "crop",
    "draws": "crop",
    "keep_map": "mixup",
    "rand_augment": "operations",
}
__all__ = ["Augmentation", "Erasing", "augmented", "draws", "keep_map", "rand_augment"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
