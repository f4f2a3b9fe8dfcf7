"""Estimates steps, hours, memory, disk, checkpoints and failures of a job, each figure with its calculation.

Figures for Ascend are computed from published rates, figures for a CPU from steps that are run on this machine.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Literal, NamedTuple, Optional

from datasets.base.errors import InputError
from datasets.batches import steps_per_epoch
from datasets.records import load_index
from mae.config.sections import Config, LinearConfig, ModelConfig, PretrainConfig, Recipe
from mae.masking import kept_patches
from mae.model.card import ModelCard
from mae.model.sizes import PEAK_910A, TRAINING, training_flops
from mae.planning.rate import CoreRates, core_rates, measure
from mae.weights.layouts import shapes

IMAGENET = (1_281_167, 50_000, 1_000)  # training images, validation images, classes
IMAGENET_BYTES = 108_000  # mean of a training image: 138 GB / 1,281,167
SAMPLE, SAMPLE_BYTES = (6_000, 1_000, 10), 1_000  # the same numbers for the shipped sample
# Share of the peak that Ascend's PyTorch port of MAE reaches on eight 910A (ModelZoo-PyTorch, MAE_for_PyTorch):
# pre-training 314 images/s * 58.7 GFLOP / 256 TFLOP/s, fine-tuning 283 * 105.4 / 256. MindSpore's is not published.
UTILISATION = {"pretrain": 0.072, "finetune": 0.1165, "linear": 0.1165}  # a probe is assumed to reach fine-tuning's
ASCEND_MEMORY = 32e9  # bytes of a 910A
DISK_RATE = 0.8e9  # bytes/s written to a local disk (tests/benchmarks/bench_shard.py)
FAILURE_DEVICE_HOURS = 50_600  # between two failures: Llama 3, 419 in 54 days on 16,384 GPUs (arXiv 2407.21783, 3.3.4)
RESTART_SECONDS = 180.0  # to notice a failure, start the ranks and compile the graph again

Add = Callable[[str, float, str, str], float]  # adds name, value, unit and calculation; returns the value


class Figure(NamedTuple):
    """One number of an estimate and its calculation."""

    stage: str
    name: str
    value: float
    unit: str
    how: str


class Estimate:
    """The estimated costs of a job. Hours are wall-clock hours; a GB is 10^9 bytes."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(self, stage: str, name: str, value: float, unit: str, how: str) -> float:
        """Add a figure and return its number."""
        self.figures.append(Figure(stage, name, value, unit, how))
        return value

    def value(self, stage: str, name: str) -> float:
        """Return the number of one figure; raise KeyError if there is none of that name."""
        return {(f.stage, f.name): f.value for f in self.figures}[stage, name]

    def table(self) -> str:
        """Return the figures as aligned text, one per line, and a line that says what is not estimated."""
        lines = [f"{f.stage:9} {f.name:20} {f.value:14,.2f} {f.unit:24} = {f.how}" for f in self.figures]
        return "\n".join([*lines, "not estimated: evaluations, predictions and the report"])


class DataSize(NamedTuple):
    """The amount of data that a job reads."""

    train: int  # images
    val: int  # images
    classes: int
    bytes: float
    source: str  # where these numbers come from


def estimate(
    config: Config, *, servers: int = 1, images: Optional[int] = None, rate: Optional[float] = None
) -> Estimate:
    """Estimate the data stages, and each training that the config has a section for.

    Args:
        servers: number of servers, each of which runs `device.ranks` ranks.
        images: number of training images. None: counted in the config's records, or ImageNet's.
        rate: training images per second and device of the config's task, if it was measured elsewhere.

    Raises:
        InputError: the config does not fit the data.
    """
    data, devices = _data(config, images), servers * config.device.ranks
    rates = core_rates(config.model.image_shape, config.recipe.crop_scale)
    result = Estimate()
    _preparation(functools.partial(result.add, "data"), data, rates)
    for task, _ in config.recipes():
        given = rate if task == config.task else None
        _training(functools.partial(result.add, task), task, config, data, devices, given, rates)
    return result


def parameter_count(model: ModelConfig, classes: Optional[int] = None) -> int:
    """Return the number of trained values of a MAE, or of a classifier with `classes` classes."""
    kind: Literal["mae", "classifier"] = "mae" if classes is None else "classifier"
    card = ModelCard(kind=kind, model=model.model_copy(update={"num_classes": classes}))
    fixed = ("pos_embed", "decoder_pos_embed") if classes is None else ("head.0.",)
    return sum(math.prod(shape) for name, shape in shapes(card).items() if not name.startswith(fixed))


def optimal_interval(checkpoint_seconds: float, mean_seconds_between_failures: float) -> float:
    """Return the seconds between checkpoints that lose the least time, sqrt(2 C M) (Young 1974)."""
    return math.sqrt(2 * checkpoint_seconds * mean_seconds_between_failures)


def _data(config: Config, images: Optional[int]) -> DataSize:
    if images is not None:
        return DataSize(images, 0, IMAGENET[2], images * IMAGENET_BYTES, "given; 108 kB per image, as in ImageNet")
    if config.data.records is not None:
        index = load_index(config.data.records)
        found = sum(shard.bytes for shard in index.all_shards())
        train, val = index.splits["train"].images, index.splits["val"].images
        return DataSize(train, val, len(index.classes), found, f"counted in {config.data.records}")
    if config.data.root is None and config.device.target == "CPU":
        train, val, classes = SAMPLE
        return DataSize(train, val, classes, (train + val) * SAMPLE_BYTES, "the shipped sample")
    train, val, classes = IMAGENET
    return DataSize(
        train, val, classes, (train + val) * IMAGENET_BYTES, "ImageNet-1k, assumed; pass --images or set data.records"
    )


def _preparation(add: Add, data: DataSize, rates: CoreRates) -> None:
    cores, count = len(os.sched_getaffinity(0)), data.train + data.val
    add("images", count, "", data.source)
    how = f"{count:,} images / ({rates.validated:,.0f} images/s and core, measured here, * {cores} cores)"
    add("validate", count / (rates.validated * cores) / 3600, "h", how)
    how = f"{data.bytes / 1e9:,.1f} GB / {DISK_RATE / 1e9:.1f} GB/s written"
    add("shard", data.bytes / DISK_RATE / 3600, "h", how)
    add("records", data.bytes / 1e9, "GB", "the bytes of the images, which are not changed")


def _training(
    add: Add, task: str, config: Config, data: DataSize, devices: int, rate: Optional[float], rates: CoreRates
) -> None:
    recipe, model = dict(config.recipes())[task], config.model
    batch, key = recipe.batch_size * recipe.accum_iter, f"{task}.batch_size"
    updates = steps_per_epoch(data.train, batch_size=batch, ranks=devices, key=key)
    effective = batch * devices
    how = f"{recipe.batch_size} images * {recipe.accum_iter} accumulated * {devices} devices"
    add("effective batch", effective, "images", how)
    how = f"{recipe.epochs} epochs * ({data.train:,} images // {effective:,})"
    steps = add("updates", recipe.epochs * updates, "", how)
    how = f"{1 if isinstance(recipe, LinearConfig) else TRAINING} * the forward pass's matrix products"
    flops = add("work", training_flops(model, recipe) / 1e9, "GFLOP/image", how) * 1e9
    speed = _speed(add, task, config, flops, rate, data.classes)
    how = f"{steps:,.0f} updates * {effective:,} images / ({speed:,.0f} images/s * {devices} devices)"
    hours = add("time", steps * effective / (speed * devices) / 3600, "h", how)
    how = f"{speed:,.0f} images/s / {rates.trained:,.0f} images/s and core, measured here"
    add("input cores", speed / rates.trained, "per device", how)
    parameters = parameter_count(model, None if task == "pretrain" else data.classes)
    trained = data.classes * (model.embed_dim + 1) if isinstance(recipe, LinearConfig) else parameters
    _memory(add, recipe, config, parameters, trained)
    _checkpoints(add, recipe, parameters, trained, hours, updates, devices)


def _speed(add: Add, task: str, config: Config, flops: float, rate: Optional[float], classes: int) -> float:
    """Return the training images per second and device."""
    if rate is not None:
        return add("rate", rate, "images/s and device", "given")
    if config.device.target == "Ascend":
        if config.compute.float32_products:
            expected, todo = "float16 products, for which a 910A's rate is published", "give --rate, measured on a 910A"
            raise InputError("compute", expected=expected, found="float32 products", todo=todo)
        share = UTILISATION[task]
        peak = f"{share:.1%} of {PEAK_910A / 1e12:.0f} TFLOP/s, published for PyTorch on eight 910A"
        how = f"{peak}, / {flops / 1e9:.1f} GFLOP"
        if config.compute.recompute and task != "linear":
            share, how = share * 3 / 4, f"{how} * 3 / 4, because each block is computed twice"
        return add("rate", share * PEAK_910A / flops, "images/s and device", how)
    found = measure(config.model_copy(update={"task": task}), classes)
    how = f"measured here: {found.images:,} images in {found.seconds:.3f} s (mean of {found.steps} steps)"
    add("measured memory", found.peak_bytes / 1e9, "GB per device", "peak resident memory of the rank")
    return add("rate", found.images / found.seconds, "images/s and device", how)


def _memory(add: Add, recipe: Recipe, config: Config, parameters: int, trained: int) -> None:
    half = config.compute.dtype == "float16" or (config.compute.dtype is None and config.device.target == "Ascend")
    held = {"weights": 4, **({"halves": 2} if half else {})}
    each = {"gradients": 4, **({"sums": 4} if recipe.accum_iter > 1 else {}), **_optimizer_bytes(recipe)}
    state, how = _bytes(parameters, held, trained, each)
    add("state", state / 1e9, "GB per device", how)
    probe = isinstance(recipe, LinearConfig)
    kept = recipe.batch_size * _activation_bytes(config.model, recipe, 2 if half else 4, config.compute.recompute)
    what = "one block at a time, because none is trained" if probe else "kept in each block for the backward pass"
    add("activations", kept / 1e9, "GB per device", f"{recipe.batch_size} images; {what}")
    if config.device.target == "Ascend":
        add("memory", (state + kept) / ASCEND_MEMORY, "of a 910A's 32 GB", "state and activations")


def _optimizer_bytes(recipe: Recipe) -> dict[str, int]:
    """Return the optimiser's bytes per trained parameter by name; a checkpoint contains them too."""
    state = {"velocities": 4} if isinstance(recipe, LinearConfig) else {"moments": 8}
    return {**state, **({"averages": 4} if recipe.ema else {})}


def _bytes(parameters: int, each: dict[str, int], trained: int, each_trained: dict[str, int]) -> tuple[int, str]:
    """Return the bytes of `each` for all parameters and `each_trained` for the trained ones, and their calculation."""

    def listed(sizes: dict[str, int]) -> str:
        return ", ".join(f"{name} {size}" for name, size in sizes.items())

    total = parameters * sum(each.values()) + trained * sum(each_trained.values())
    return total, f"{parameters:,} parameters * ({listed(each)}) + {trained:,} trained * ({listed(each_trained)}) bytes"


def _activation_bytes(model: ModelConfig, recipe: Recipe, size: int, recompute: bool) -> float:
    """Return the bytes of one image's activations: two residual streams per block, and the activations inside blocks.

    With `recompute`, the latter are kept for one block at a time.
    """

    def blocks(tokens: int, width: int, depth: int, heads: int, mlp_ratio: float) -> float:
        # both norms' outputs; q, k, v; the attention's output; the hidden layer, GELU's distribution value and output
        inner = size * (tokens * width * (6 + 3 * mlp_ratio) + heads * tokens**2)
        return depth * 2 * 4 * tokens * width + inner * (1 if recompute else depth)

    patches = model.grid[0] * model.grid[1]
    if not isinstance(recipe, PretrainConfig):
        depth = 1 if isinstance(recipe, LinearConfig) else model.depth
        return blocks(1 + patches, model.embed_dim, depth, model.num_heads, model.mlp_ratio)
    visible = 1 + kept_patches(patches, recipe.mask_ratio)
    width, ratio = model.decoder_embed_dim, model.decoder_mlp_ratio or model.mlp_ratio
    encoder = blocks(visible, model.embed_dim, model.depth, model.num_heads, model.mlp_ratio)
    return encoder + blocks(1 + patches, width, model.decoder_depth, model.decoder_num_heads, ratio)


def _checkpoints(
    add: Add, recipe: Recipe, parameters: int, trained: int, hours: float, updates: int, devices: int
) -> None:
    files = {"weights": 4, **({"averaged": 4} if recipe.ema else {})}
    written, how = _bytes(parameters, files, trained, _optimizer_bytes(recipe))
    size = add("checkpoint", written / 1e9, "GB", how)
    seconds = add("checkpoint time", written / DISK_RATE, "s", f"{size:.2f} GB / {DISK_RATE / 1e9:.1f} GB/s")
    steps, every = recipe.epochs * updates, recipe.checkpoint_steps
    ends = {*range(updates, steps + 1, updates), *(range(every, steps + 1, every) if every else ())}
    due = sorted(step for step in ends if recipe.checkpoint_due(step, updates))
    permanent = {step for step in due if recipe.keep_epochs and step % (recipe.keep_epochs * updates) == 0}
    how = f"every {recipe.checkpoint_epochs} of {recipe.epochs} epochs, and the last"
    how += f"; every {recipe.keep_epochs} epochs, kept for good" if recipe.keep_epochs else ""
    how += f"; every {every} of {steps:,} updates" if every else ""
    count, kept = len(due), len({*due[-recipe.keep_checkpoints :], *permanent})
    add("checkpoints", count, "", how)
    add("checkpoints on disk", kept * size, "GB", f"{kept} kept * {size:.2f} GB")
    interval = hours * 3600 / count
    how = f"{hours:,.1f} h * {devices} devices / {FAILURE_DEVICE_HOURS:,} device-hours (Llama 3's)"
    failures = add("failures", hours * devices / FAILURE_DEVICE_HOURS, "expected", how)
    how = f"{failures:.3f} failures * ({interval:,.0f} s / 2 + {RESTART_SECONDS:.0f} s) + {count} * {seconds:.1f} s"
    add("expected loss", (failures * (interval / 2 + RESTART_SECONDS) + count * seconds) / 3600, "h", how)
    between = FAILURE_DEVICE_HOURS / devices * 3600
    how = f"sqrt(2 * {seconds:.1f} s * {between:,.0f} s between failures) (Young 1974)"
    add("best interval", optimal_interval(seconds, between) / 60, "min between checkpoints", how)
