"""Models from checkpoints: what is missing or does not fit is named, nothing is loaded by halves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

from datasets.stage import InputError

from . import checkpoint
from .config import ComputeConfig
from .model import MaskedAutoencoder
from .vit import VisionTransformer

CLASSIFIER_ONLY = ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
MAE_ONLY = ("norm.", "mask_token", "decoder_")


def load_parameters(
    model: nn.Cell, weights: Mapping[str, np.ndarray], *, source: object, may_miss: Collection[str] = ()
) -> None:
    """Copy weights into a model's parameters of the same names and shapes.

    Raises:
        InputError: a parameter outside `may_miss` has no weight, a weight has no parameter, or a shape differs.
    """
    parameters = {p.name: p for p in model.get_parameters()}
    missing = sorted(set(parameters) - set(weights) - set(may_miss))
    unexpected = sorted(set(weights) - set(parameters))
    misshapen = [
        f"{name} {weights[name].shape} instead of {parameters[name].shape}"
        for name in sorted(set(parameters) & set(weights))
        if weights[name].shape != tuple(parameters[name].shape)
    ]
    faults = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshapen))
        if names
    ]
    if faults:
        todo = "give a checkpoint of this architecture"
        raise InputError(source, expected=f"weights of {type(model).__name__}", found="; ".join(faults), todo=todo)
    for name, parameter in parameters.items():
        if name in weights:
            parameter.set_data(Tensor(weights[name]))


def load_mae(path: Path) -> MaskedAutoencoder:
    """The masked autoencoder in a model file."""
    card = _card(path, "mae")
    model = MaskedAutoencoder(card.model)
    load_parameters(model, checkpoint.load_weights(path), source=path)
    return model


def load_classifier(path: Path) -> VisionTransformer:
    """The classifier in a model file."""
    card = _card(path, "classifier")
    assert card.classes is not None
    model = VisionTransformer(card.model, len(card.classes))
    load_parameters(model, checkpoint.load_weights(path), source=path)
    return model


def classifier_from_mae(path: Path, num_classes: int, *, drop_path: float, compute: ComputeConfig) -> VisionTransformer:
    """A classifier on a pre-trained encoder, its head fresh: the decoder and the encoder's final norm stay behind."""
    card = _card(path, "mae")
    model = VisionTransformer(card.model, num_classes, drop_path=drop_path, compute=compute)
    weights = {n: w for n, w in checkpoint.load_weights(path).items() if not n.startswith(MAE_ONLY)}
    load_parameters(model, weights, source=path, may_miss=CLASSIFIER_ONLY)
    return model


def _card(path: Path, kind: str) -> checkpoint.ModelCard:
    card = checkpoint.load_card(path)
    if card.kind != kind:
        todo = "give a checkpoint of the other task" if kind == "classifier" else "give a pre-training checkpoint"
        raise InputError(path, expected=f"a {kind} checkpoint", found=f"a {card.kind} checkpoint", todo=todo)
    return card
