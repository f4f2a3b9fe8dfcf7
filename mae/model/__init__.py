"""The model: patches, vision transformer, masked autoencoder, forward passes; no training. Read mae.py first.

card.py (the description stored with the weights) and sizes.py (FLOP) do not need MindSpore; importing this room does
not load it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae.model.mae import MaskedAutoencoder
    from mae.model.vit import VisionTransformer

__all__ = ["MaskedAutoencoder", "VisionTransformer"]


_FILES = {"MaskedAutoencoder": "mae.model.mae", "VisionTransformer": "mae.model.vit"}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FILES[name]), name)
