"""Finds the evaluation protocols. Each is one Python file in mae/evaluation/, or in a folder that $MAE_PROTOCOLS names.

A protocol's file defines

    VERSION    int, raised when the procedure changes: results of another version are measured again
    Settings   the type of its section in a config, a subclass of `Section`

and one or two of

    predict    (train Features, val Features, Settings) -> labels of val (N,): a classifier on frozen features. The
               encoder is compared with the same encoder with random weights and with raw pixels. Pre-training can use
               the protocol between epochs (`pretrain.eval_protocols`). If Settings has a field `pool`, it is cls or
               mean, the feature of an image.
    measure    (Subject, Settings) -> iterable of Score, one per encoder that is compared. It is called in one process,
               and replaces the comparison that `predict` means.
    ENCODER    in a protocol with neither: name of the encoder in its Score. The checkpoint's classifier is measured. If
               Settings is a recipe (FinetuneConfig or LinearConfig), a classifier is trained from the checkpoint first.

The first line of its docstring is its help. Nothing else has to change for a new protocol: configs, command line,
pipeline and report look here. Protocols are imported by name when they are first needed, so this room does not import
theirs.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = "mae.evaluation"
NO_PROTOCOLS = ("evaluate", "features", "history", "protocol")  # the other files of that folder


def protocols() -> dict[str, ModuleType]:
    """Return all protocols by name, in alphabetical order."""
    return {name: importlib.import_module(f"{PACKAGE}.{name}") for name in protocol_names()}


def protocol_names() -> list[str]:
    """Return the names of all protocols in alphabetical order, without importing them."""
    package = sys.modules.get(PACKAGE)
    own = str(Path(__file__).parents[1] / "evaluation")
    folders = package.__path__ if package is not None else [own, *extra_folders()]
    return sorted({found.name for found in pkgutil.iter_modules(folders)} - set(NO_PROTOCOLS))


def frozen_protocols() -> list[str]:
    """Return the names of the protocols that classify frozen features."""
    return [name for name, module in protocols().items() if hasattr(module, "predict")]


def extra_folders() -> list[str]:
    """Return the folders that $MAE_PROTOCOLS names, separated by colons."""
    return [folder for folder in os.environ.get("MAE_PROTOCOLS", "").split(os.pathsep) if folder]
