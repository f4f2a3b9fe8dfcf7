"""Builds a job: a model, its loss and optimiser, and the function that makes the loss's arguments from a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import nn

from datasets.augmentation import keep_map
from datasets.batches import Batch
from mae.config.sections import Config, FinetuneConfig, LinearConfig, ModelConfig, PretrainConfig, Recipe
from mae.device.context import compute_dtype, seed_initialisers
from mae.masking import ids_from_noise
from mae.model.card import ModelCard
from mae.model.mae import MaskedAutoencoder
from mae.model.vit import Encoder, VisionTransformer
from mae.training.losses import ClassifyLoss, PretrainLoss
from mae.training.optim import LARS, AdamW, layer_scales
from mae.training.update import Optimizer, Update
from mae.weights.restore import classifier_from_mae


class Place(NamedTuple):
    """The place of a batch in the training. It seeds the random numbers of the batch."""

    epoch: int
    update: int
    part: int  # number of the batch among those accumulated for one update
    rank: int = 0


class Job(NamedTuple):
    """One task, ready for the training loop."""

    config: Config  # the one in force
    model: Encoder
    loss: nn.Cell
    optimizer: Optimizer
    card: ModelCard
    inputs: Callable[[Batch, Place], list[np.ndarray]]  # arguments of the loss

    @property
    def recipe(self) -> Recipe:
        """The section of the task."""
        return self.config.recipe


def build_job(config: Config, *, classes: list[str]) -> Job:
    """Return the job of the config's task, with the same initial weights on every rank, from the config's seed."""
    seed_initialisers(config.seed)
    recipe = config.recipe
    if isinstance(recipe, PretrainConfig):
        return _pretrain(config, recipe)
    if isinstance(recipe, FinetuneConfig):
        return _finetune(config, recipe, classes)
    return _linear(config, recipe, classes)


def _pretrain(config: Config, recipe: PretrainConfig) -> Job:
    model, ranks = MaskedAutoencoder(config.model, compute=config.compute), config.device.ranks

    def inputs(batch: Batch, place: Place) -> list[np.ndarray]:
        drawn = _drawn(len(batch.images), ranks, model.patches, place, [config.seed, place.epoch, place.update])
        return [batch.images, *ids_from_noise(drawn, recipe.mask_ratio)]

    return Job(
        config=config,
        model=model,
        loss=PretrainLoss(model),
        optimizer=AdamW(model.trainable_params(), betas=recipe.betas, weight_decay=recipe.weight_decay),
        card=ModelCard(kind="mae", model=config.model, mask_ratio=recipe.mask_ratio),
        inputs=inputs,
    )


def _finetune(config: Config, recipe: FinetuneConfig, classes: list[str]) -> Job:
    """End-to-end fine-tuning with layer-wise decay: the deeper a layer, the larger its learning rate."""
    model = _classifier(config, config.model, classes, drop_path=recipe.drop_path)
    parameters = model.trainable_params()
    names = [p.name for p in parameters]

    def inputs(batch: Batch, place: Place) -> list[np.ndarray]:
        arrays = [batch.images, batch.labels]
        if recipe.drop_path:
            seeds = [config.seed, place.epoch, place.update, 0, 0, 1]
            drawn = _drawn(len(batch.images), config.device.ranks, 2 * model.config.depth, place, seeds)
            arrays.append(branches(drawn, recipe.drop_path))
        if recipe.mixup or recipe.cutmix:
            rng = np.random.default_rng([config.seed, *place])
            arrays.append(keep_map(rng, model.config.image_shape, mixup=recipe.mixup, cutmix=recipe.cutmix))
        return arrays

    return Job(
        config=config,
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


def build_update(job: Job) -> Update:
    """Return the compiled step of a job."""
    return Update(
        job.loss,
        job.optimizer,
        ranks=job.config.device.ranks,
        accum_iter=job.recipe.accum_iter,
        clip_grad=job.recipe.clip_grad,
        ema=job.recipe.ema,
        dynamic_scale=compute_dtype(job.config.compute) == ms.float16,
    )


def branches(drawn: np.ndarray, drop_path: float) -> np.ndarray:
    """Return the factors on each image's branches, (N, depth, 2) float32, from uniform numbers (N, 2 * depth).

    Stochastic depth (Huang et al. 2016): the rate of dropped branches rises linearly from 0 in the first block to
    `drop_path` in the last. The other branches are scaled up so that the expectation stays the same.
    """
    drawn = drawn.reshape(len(drawn), -1, 2)
    rates = np.linspace(0, drop_path, drawn.shape[1])[:, None]
    return ((drawn >= rates) / (1 - rates)).astype(np.float32)


def _drawn(images: int, ranks: int, each: int, place: Place, seeds: list[int]) -> np.ndarray:
    """Return uniform numbers (images, each) float64 for one rank's batch.

    All numbers of an update come from one stream, so the numbers of an image depend neither on the number of ranks nor
    on the number of parts of an update.
    """
    rows, stream = images * ranks, np.random.default_rng(seeds)
    stream.bit_generator.advance(place.part * rows * each)  # type: ignore[attr-defined]
    return stream.random((rows, each))[place.rank :: ranks]


def _linear(config: Config, recipe: LinearConfig, classes: list[str]) -> Job:
    """Batch normalisation and a linear layer on the frozen encoder's class token."""
    sizes = config.model.model_copy(update={"pool": "cls", "head": "batch_norm"})
    model = _classifier(config, sizes, classes, drop_path=0.0)
    for parameter in model.trainable_params():
        parameter.requires_grad = parameter.name.startswith("head.")
    return Job(
        config=config,
        model=model,
        loss=ClassifyLoss(model, 0.0),
        optimizer=LARS(
            model.trainable_params(), momentum=recipe.momentum, trust=recipe.trust, weight_decay=recipe.weight_decay
        ),
        card=ModelCard(kind="classifier", model=model.config, classes=classes),
        inputs=lambda batch, _place: [batch.images, batch.labels],
    )


def _classifier(config: Config, sizes: ModelConfig, classes: list[str], *, drop_path: float) -> VisionTransformer:
    if config.init is None:  # train() refuses this; `mae plan` measures before there is a checkpoint
        return VisionTransformer(sizes, len(classes), drop_path=drop_path, compute=config.compute)
    return classifier_from_mae(Path(config.init), len(classes), sizes, drop_path=drop_path, compute=config.compute)
