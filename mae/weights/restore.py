"""Models from checkpoints of any layout: what is missing or does not fit is named, nothing is loaded by halves."""

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
from mae.weights.convert import Loaded, read
from mae.weights.layouts import differences, shapes

ENCODER_SIZES = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
FRESH = ("fc_norm.", "head.")  # of a classifier on a pre-trained encoder

Settings = Optional[Mapping[str, Any]]
Model = Union[MaskedAutoencoder, VisionTransformer]


def load_parameters(
    model: nn.Cell, weights: Mapping[str, np.ndarray], *, source: object, may_miss: Collection[str] = ()
) -> None:
    """Copy weights into a model's parameters of the same names and shapes.

    Raises:
        InputError: a parameter outside `may_miss` has no weight, a weight has no parameter, or a shape differs.
    """
    parameters = {p.name: p for p in model.get_parameters()}
    faults = differences(weights, {name: tuple(p.shape) for name, p in parameters.items()}, may_miss)
    if faults:
        todo = "give a checkpoint of this architecture"
        raise InputError(source, expected=f"weights of {type(model).__name__}", found=faults, todo=todo)
    for name, parameter in parameters.items():
        if name in weights:
            parameter.set_data(Tensor(weights[name]))


def load_model(path: Path, *, settings: Settings = None, compute: ComputeConfig = DEFAULT_COMPUTE) -> Model:
    """The model in a checkpoint of any kind, its card at `model.card`; `settings` as of `convert.read`."""
    return _model(read(path, settings=settings), path, compute)


def load_mae(path: Path, *, settings: Settings = None, compute: ComputeConfig = DEFAULT_COMPUTE) -> MaskedAutoencoder:
    """The masked autoencoder in a checkpoint."""
    model = _model(_read(path, settings, ("mae",)), path, compute)
    assert isinstance(model, MaskedAutoencoder)
    return model


def load_classifier(
    path: Path, *, settings: Settings = None, compute: ComputeConfig = DEFAULT_COMPUTE
) -> VisionTransformer:
    """The classifier in a checkpoint."""
    model = _model(_read(path, settings, ("classifier",)), path, compute)
    assert isinstance(model, VisionTransformer)
    return model


def load_encoder(path: Path, *, settings: Settings = None, compute: ComputeConfig = DEFAULT_COMPUTE) -> Model:
    """What has `encode` (tokens of whole images after the final norm): a MAE itself, an encoder without head."""
    return _model(_read(path, settings, ("mae", "encoder")), path, compute)


def classifier_from_mae(
    path: Path, num_classes: int, config: ModelConfig, *, drop_path: float, compute: ComputeConfig = DEFAULT_COMPUTE
) -> VisionTransformer:
    """A classifier on a pre-trained encoder, of a MAE or alone: its head is fresh, the decoder stays behind.

    With mean pooling the encoder's final norm stays behind too, and a fresh one stands before the head (upstream's
    fine-tuning); with cls it is kept. Another image size than the checkpoint's interpolates its position embedding.

    Raises:
        InputError: `config` is of another encoder than the checkpoint.
    """
    loaded = _read(path, {"image_size": config.image_size}, ("mae", "encoder"))
    found = loaded.card.model
    for name in ENCODER_SIZES:
        if getattr(found, name) != getattr(config, name):
            expected = f"{name} {getattr(config, name)}, as the config's model has"
            todo = f"set model.{name} to the checkpoint's"
            raise InputError(path, expected=expected, found=str(getattr(found, name)), todo=todo)
    found = found.model_copy(update={"pool": config.pool, "head": config.head, "crop_pct": config.crop_pct})
    model = VisionTransformer(found, num_classes, drop_path=drop_path, compute=compute)
    names = {p.name for p in model.get_parameters()}
    encoder = loaded.card.model_copy(update={"kind": "encoder"})
    weights = {name: loaded.weights[name] for name in shapes(encoder) if name in names}
    load_parameters(model, weights, source=path, may_miss=[name for name in names if name.startswith(FRESH)])
    return model


def _model(loaded: Loaded, source: Path, compute: ComputeConfig) -> Model:
    card = loaded.card
    model: Model
    if card.kind == "mae":
        model = MaskedAutoencoder(card.model, compute=compute)
    elif card.kind == "encoder":
        model = VisionTransformer(card.model.model_copy(update={"pool": "cls"}), 0, compute=compute)
    else:
        model = VisionTransformer(card.model, len(card.labels), compute=compute)
    load_parameters(model, loaded.weights, source=source)
    model.card = card
    return model


def _read(path: Path, settings: Settings, kinds: tuple[str, ...]) -> Loaded:
    loaded = read(path, settings=settings)
    kind = loaded.card.kind
    if kind in kinds:
        return loaded
    if kind == "encoder" and "mae" in kinds:
        todo = "put an untrained decoder on it if that is meant: mae convert SRC DST --random-decoder"
        raise InputError(path, expected="a mae checkpoint", found="an encoder checkpoint without decoder", todo=todo)
    todo = "give a checkpoint of the other task" if kinds == ("classifier",) else "give a pre-training checkpoint"
    raise InputError(path, expected=f"a {' or '.join(kinds)} checkpoint", found=f"a {kind} checkpoint", todo=todo)
