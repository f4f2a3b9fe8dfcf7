"""The Python interface, which `from mae import ...` gives. Read auto.py first, then trainer.py.

A name's module is loaded at its first use, so importing this room does not load MindSpore.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae.api.auto import AutoConfig, AutoModel
    from mae.api.image_pipeline import pipeline
    from mae.api.trainer import Trainer
    from mae.prediction import load_image

# A module must not have the name of its export: importing the module would replace the export.
_MODULES = {
    "AutoConfig": "mae.api.auto",
    "AutoModel": "mae.api.auto",
    "Trainer": "mae.api.trainer",
    "load_image": "mae.prediction.images",
    "pipeline": "mae.api.image_pipeline",
}
__all__ = ["AutoConfig", "AutoModel", "Trainer", "load_image", "pipeline"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
