"""What is trained: a model, its loss and optimiser, and how a batch of records becomes the loss's arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mindspore import nn

from datasets.batches import Batch

from .checkpoint import ModelCard
from .config import Config, FinetuneConfig, LinprobeConfig, ModelConfig, PretrainConfig, Recipe
from .device import seed_initialisers
from .masking import ids_from_noise
from .mixup import keep_map
from .model import MaskedAutoencoder
from .objective import ClassifyLoss, Optimizer, PretrainLoss
from .optim import LARS, AdamW, layer_scales
from .restore import classifier_from_mae
from .vit import Encoder, VisionTransformer


class Place(NamedTuple):
    """Where in the training a batch stands: seeds what is drawn for it."""

    epoch: int
    update: int
    part: int  # of the batches that are accumulated for one update


class Job(NamedTuple):
    """One task, ready for the training loop."""

    recipe: Recipe
    model: Encoder
    loss: nn.Cell
    optimizer: Optimizer
    card: ModelCard
    inputs: Callable[[Batch, Place], list[np.ndarray]]


def build_job(config: Config, *, classes: list[str], rank: int) -> Job:
    """The job of the config's task, at the initialisation that the config's seed gives on every rank."""
    seed_initialisers(config.seed)
    recipe = config.recipe
    if isinstance(recipe, PretrainConfig):
        return _pretrain(config, recipe, rank)
    if isinstance(recipe, FinetuneConfig):
        return _finetune(config, recipe, classes, rank)
    return _linprobe(config, recipe, classes)


def _pretrain(config: Config, recipe: PretrainConfig, rank: int) -> Job:
    model, ranks = MaskedAutoencoder(config.model, compute=config.compute), config.device.ranks

    def inputs(batch: Batch, place: Place) -> list[np.ndarray]:
        # The noise of an update is one stream: an image's mask depends neither on the number of ranks nor on how many
        # parts the update is cut into.
        rows = len(batch.images) * ranks
        noise = np.random.default_rng([config.seed, place.epoch, place.update])
        noise.bit_generator.advance(place.part * rows * model.patches)  # type: ignore[attr-defined]
        values = noise.random((rows, model.patches))
        return [batch.images, *ids_from_noise(values[rank::ranks], recipe.mask_ratio)]

    return Job(
        recipe=recipe,
        model=model,
        loss=PretrainLoss(model),
        optimizer=AdamW(model.trainable_params(), betas=recipe.betas, weight_decay=recipe.weight_decay),
        card=ModelCard(kind="mae", model=config.model, mask_ratio=recipe.mask_ratio),
        inputs=inputs,
    )


def _finetune(config: Config, recipe: FinetuneConfig, classes: list[str], rank: int) -> Job:
    """End-to-end fine-tuning: the deeper a layer, the larger its learning rate (layer-wise decay)."""
    model = _classifier(config, config.model, classes, drop_path=recipe.drop_path)
    parameters = model.trainable_params()
    names = [p.name for p in parameters]

    def inputs(batch: Batch, place: Place) -> list[np.ndarray]:
        if not (recipe.mixup or recipe.cutmix):
            return [batch.images, batch.labels]
        rng = np.random.default_rng([config.seed, *place, rank])
        keep = keep_map(rng, model.config.image_shape, mixup=recipe.mixup, cutmix=recipe.cutmix)
        return [batch.images, batch.labels, keep]

    return Job(
        recipe=recipe,
        model=model,
        loss=ClassifyLoss(model, recipe.label_smoothing),
        optimizer=AdamW(
            parameters,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            exempt=("cls_token", "pos_embed"),
            scales=layer_scales(names, depth=model.config.depth, layer_decay=recipe.layer_decay),
        ),
        card=ModelCard(kind="classifier", model=model.config, classes=classes),
        inputs=inputs,
    )


def _linprobe(config: Config, recipe: LinprobeConfig, classes: list[str]) -> Job:
    """A linear layer behind batch normalisation on the frozen encoder's cls token."""
    sizes = config.model.model_copy(update={"pool": "cls", "head": "batch_norm"})
    model = _classifier(config, sizes, classes, drop_path=0.0)
    for parameter in model.trainable_params():
        parameter.requires_grad = parameter.name.startswith("head.")
    return Job(
        recipe=recipe,
        model=model,
        loss=ClassifyLoss(model, 0.0),
        optimizer=LARS(
            model.trainable_params(), momentum=recipe.momentum, trust=recipe.trust, weight_decay=recipe.weight_decay
        ),
        card=ModelCard(kind="classifier", model=model.config, classes=classes),
        inputs=lambda batch, _place: [batch.images, batch.labels],
    )


def _classifier(config: Config, sizes: ModelConfig, classes: list[str], *, drop_path: float) -> VisionTransformer:
    if config.init is None:  # train() refuses it; `mae plan` measures before there is a checkpoint
        return VisionTransformer(sizes, len(classes), drop_path=drop_path, compute=config.compute)
    return classifier_from_mae(Path(config.init), len(classes), sizes, drop_path=drop_path, compute=config.compute)
