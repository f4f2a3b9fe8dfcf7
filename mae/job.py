"""What is trained: a model, its loss and optimiser, and how a batch of records becomes the loss's arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mindspore import nn

from datasets.batches import Batch
from datasets.stage import InputError

from .checkpoint import ModelCard
from .config import Config, FinetuneConfig, PretrainConfig
from .device import seed_initialisers
from .masking import ids_from_noise
from .model import MaskedAutoencoder
from .objective import ClassifyLoss, PretrainLoss
from .optim import AdamW, layer_id
from .restore import classifier_from_mae
from .vit import Encoder, VisionTransformer


class Place(NamedTuple):
    """Where in the training a batch stands: seeds what is drawn for it."""

    epoch: int
    update: int
    part: int  # of the batches that are accumulated for one update


class Job(NamedTuple):
    """One task, ready for the training loop."""

    recipe: PretrainConfig | FinetuneConfig
    model: Encoder
    loss: nn.Cell
    optimizer: AdamW
    card: ModelCard
    inputs: Callable[[Batch, Place], list[np.ndarray]]


def build_job(config: Config, *, classes: list[str], rank: int) -> Job:
    """The job of the config's task, at the initialisation that the config's seed gives on every rank."""
    seed_initialisers(config.seed)
    if config.pretrain is not None and config.task == "pretrain":
        return _pretrain(config, config.pretrain, rank)
    assert config.finetune is not None  # Config has checked that the task has its section
    return _finetune(config, config.finetune, classes)


def _pretrain(config: Config, recipe: PretrainConfig, rank: int) -> Job:
    model, ranks = MaskedAutoencoder(config.model, compute=config.compute), config.device.ranks

    def inputs(batch: Batch, place: Place) -> list[np.ndarray]:
        # The noise of a global batch is drawn whole: an image's mask does not depend on the number of ranks.
        noise = np.random.default_rng([config.seed, *place]).random((len(batch.images) * ranks, model.patches))
        return [batch.images, *ids_from_noise(noise[rank::ranks], recipe.mask_ratio)]

    return Job(
        recipe=recipe,
        model=model,
        loss=PretrainLoss(model),
        optimizer=AdamW(model.trainable_params(), betas=recipe.betas, weight_decay=recipe.weight_decay),
        card=ModelCard(kind="mae", model=config.model, mask_ratio=recipe.mask_ratio),
        inputs=inputs,
    )


def _finetune(config: Config, recipe: FinetuneConfig, classes: list[str]) -> Job:
    """End-to-end fine-tuning: the deeper a layer, the larger its learning rate (layer-wise decay)."""
    if config.init is None:
        todo = "set init to a pre-trained checkpoint"
        raise InputError("init", expected="a checkpoint for task finetune", found="none", todo=todo)
    model = classifier_from_mae(
        Path(config.init), len(classes), config.model, drop_path=recipe.drop_path, compute=config.compute
    )
    return classifier_job(model, recipe, classes)


def classifier_job(model: VisionTransformer, recipe: FinetuneConfig, classes: list[str]) -> Job:
    """Fine-tuning of a given model."""
    parameters, depth = model.trainable_params(), model.config.depth
    scales = [recipe.layer_decay ** (depth + 1 - layer_id(p.name, depth)) for p in parameters]
    return Job(
        recipe=recipe,
        model=model,
        loss=ClassifyLoss(model, recipe.label_smoothing),
        optimizer=AdamW(parameters, betas=recipe.betas, weight_decay=recipe.weight_decay, scales=scales),
        card=ModelCard(kind="classifier", model=model.config, classes=classes),
        inputs=lambda batch, _place: [batch.images, batch.labels],
    )
