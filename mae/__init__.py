"""Masked autoencoders on MindSpore: model, training, evaluation, launch. No Prefect.

The Python interface is imported from here: AutoConfig, AutoModel, Trainer, pipeline, load_image. Their modules are
loaded at their first use, so the command line does not wait for MindSpore.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae.api import AutoConfig, AutoModel, Trainer, load_image, pipeline

__all__ = ["AutoConfig", "AutoModel", "Trainer", "load_image", "pipeline"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mae.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
