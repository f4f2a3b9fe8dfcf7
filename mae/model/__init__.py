"""The model: patches, vision transformer, masked autoencoder, forward passes; no training. Read mae.py first.

card.py (the description stored with the weights) and sizes.py (FLOP) do not need MindSpore; importing this room does
not load it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae.model.mae import MaskedAutoencoder
    from mae.model.vit import VisionTransformer

__all__ = ["MaskedAutoencoder", "VisionTransformer"]


def __getattr__(name: str) -> Any:
    if name == "MaskedAutoencoder":
        from mae.model import mae as module
    elif name == "VisionTransformer":
        from mae.model import vit as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
