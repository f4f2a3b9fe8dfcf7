"""Masked autoencoders on MindSpore: model, training, evaluation, launch. No Prefect.

The Python interface is imported from here: AutoConfig, AutoModel, Trainer, pipeline, load_image. What they need is
loaded at their first use, so that the command line does not wait for MindSpore.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae.api.auto import AutoConfig, AutoModel
    from mae.api.image_pipeline import pipeline
    from mae.api.trainer import Trainer
    from mae.prediction.images import load_image

# No module may bear the name of what it gives: importing it would put the module in the other's place.
_MODULES = {
    "AutoConfig": "api.auto",
    "AutoModel": "api.auto",
    "Trainer": "api.trainer",
    "load_image": "prediction.images",
    "pipeline": "api.image_pipeline",
}
__all__ = ["AutoConfig", "AutoModel", "Trainer", "load_image", "pipeline"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
