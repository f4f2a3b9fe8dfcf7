"""Makes MindSpore models of checkpoints in any layout. A model is loaded completely or not at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from mindspore import Tensor, nn

from datasets.base.errors import InputError
from mae.config.sections import ComputeConfig, ModelConfig
from mae.device.context import DEFAULT_COMPUTE
from mae.model.mae import MaskedAutoencoder
from mae.model.vit import VisionTransformer
from mae.weights.convert import read
from mae.weights.layouts import differences, shapes

ENCODER_SIZES = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
FRESH = ("fc_norm.", "head.")  # parameters of a classifier that a pre-trained encoder does not have

Settings = Optional[Mapping[str, Any]]
Model = Union[MaskedAutoencoder, VisionTransformer]


def load_parameters(
    model: nn.Cell, weights: Mapping[str, np.ndarray], *, source: object, may_miss: Collection[str] = ()
) -> None:
    """Copy weights into the model's parameters of the same names.

    Raises:
        InputError: a parameter that is not in `may_miss` has no weight, a weight has no parameter, or a shape differs.
    """
    parameters = {p.name: p for p in model.get_parameters()}
    faults = differences(weights, {name: tuple(p.shape) for name, p in parameters.items()}, may_miss)
    if faults:
        todo = "give a checkpoint of this architecture"
        raise InputError(source, expected=f"weights of {type(model).__name__}", found=faults, todo=todo)
    for name, parameter in parameters.items():
        if name in weights:
            parameter.set_data(Tensor(weights[name]))


def load_model(
    path: Path,
    kinds: Collection[str] = ("mae", "encoder", "classifier"),
    *,
    settings: Settings = None,
    compute: ComputeConfig = DEFAULT_COMPUTE,
) -> Model:
    """Return the model in a checkpoint of any layout, with its card as `model.card`.

    Args:
        kinds: the kinds of models that are accepted.
        settings: as in `mae.weights.convert.read`.

    Raises:
        InputError: the checkpoint cannot be read, or is of another kind.
    """
    card, weights = read(path, settings=settings)
    _check_kind(path, card.kind, kinds)
    model: Model
    if card.kind == "mae":
        model = MaskedAutoencoder(card.model, compute=compute)
    elif card.kind == "encoder":
        model = VisionTransformer(card.model.model_copy(update={"pool": "cls"}), 0, compute=compute)
    else:
        model = VisionTransformer(card.model, len(card.labels), compute=compute)
    load_parameters(model, weights, source=path)
    model.card = card
    return model


def load_classifier(path: Path, *, settings: Settings = None) -> VisionTransformer:
    """Return the classifier in a checkpoint."""
    model = load_model(path, ("classifier",), settings=settings)
    assert isinstance(model, VisionTransformer)
    return model


def load_encoder(path: Path, *, settings: Settings = None) -> Model:
    """Return a model with `encode` (tokens of whole images after the final norm): a MAE, or an encoder alone."""
    return load_model(path, ("mae", "encoder"), settings=settings)


def classifier_from_mae(
    path: Path, num_classes: int, config: ModelConfig, *, drop_path: float, compute: ComputeConfig = DEFAULT_COMPUTE
) -> VisionTransformer:
    """Return a classifier with the pre-trained encoder of a checkpoint and a new head. A decoder is not loaded.

    With mean pooling, a new norm before the head replaces the encoder's final norm, as in upstream's fine-tuning. With
    `pool: cls` the final norm is kept. The position embedding is interpolated to the config's image size.

    Raises:
        InputError: the config's encoder has other sizes than the checkpoint's.
    """
    card, loaded = read(path, settings={"image_size": config.image_size})
    _check_kind(path, card.kind, ("mae", "encoder"))
    for name in ENCODER_SIZES:
        wanted, found = getattr(config, name), getattr(card.model, name)
        if found != wanted:
            expected, todo = f"{name} {wanted}, as the config's model has", f"set model.{name} to the checkpoint's"
            raise InputError(path, expected=expected, found=str(found), todo=todo)
    sizes = card.model.model_copy(update={"pool": config.pool, "head": config.head, "crop_pct": config.crop_pct})
    model = VisionTransformer(sizes, num_classes, drop_path=drop_path, compute=compute)
    names = {p.name for p in model.get_parameters()}
    encoder = card.model_copy(update={"kind": "encoder"})
    weights = {name: loaded[name] for name in shapes(encoder) if name in names}
    load_parameters(model, weights, source=path, may_miss=[name for name in names if name.startswith(FRESH)])
    return model


def _check_kind(path: Path, kind: str, kinds: Collection[str]) -> None:
    if kind in kinds:
        return
    expected, found = f"a {' or '.join(kinds)} checkpoint", f"a {kind} checkpoint"
    todo = "give a checkpoint of the other task" if kinds == ("classifier",) else "give a pre-training checkpoint"
    raise InputError(path, expected=expected, found=found, todo=todo)
