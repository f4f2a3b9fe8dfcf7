"""Typed job configs: one YAML file per runnable job, unknown keys are errors.

Python 3.9 syntax throughout: pydantic evaluates these annotations in the training interpreter.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from datasets.augmentation import rand_augment
from datasets.base.errors import InputError
from mae.masking import kept_patches
from mae.training.schedule import base_lr

Target = Literal["CPU", "Ascend"]
DEMO_CONFIG = "configs/demo.yaml"
LR_RULE = "lr = blr * batch_size * ranks * accum_iter / 256"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Memory = Annotated[float, Field(ge=0, lt=1)]  # share of an old value that a moving average keeps


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class DataConfig(_Section):
    """Where the images are and how they are stored."""

    root: Optional[str] = Field(None, description="folder of images; none means the shipped Fashion-MNIST sample")
    name: Optional[str] = Field(None, description="names the data set in the workspace; default: the root's own name")
    records: Optional[str] = Field(
        None, description="a directory written by `mae data shard`; the pipeline fills it in"
    )
    val_share: float = Field(0.1, gt=0, lt=1, description="held out per class when the root has no train/ and val/")
    policy: dict[str, str] = Field({}, description="fault: fail, exclude, convert or accept; see `mae data validate`")
    expect: Optional[Literal["imagenet-1k"]] = Field(None, description="a published data set that this has to be")
    near_duplicates: Optional[int] = Field(
        None, ge=0, le=8, description="find pictures whose perceptual hashes differ in at most so many bits"
    )
    min_side: int = Field(16, gt=0, description="images with a shorter side are named: they are below one patch")
    shard_mb: int = Field(1024, gt=0, description="image bytes per MindRecord shard, in MB")
    short_side: Optional[int] = Field(
        None, gt=0, description="store images with this shorter side; none keeps the pixels"
    )
    workers: int = Field(2, gt=0, description="decoding threads per rank")
    dask: Optional[str] = Field(
        None,
        description="scheduler address of a Dask cluster that prepares the data, tcp://host:8786; none: this machine",
    )


class ModelConfig(_Section):
    """Sizes of the vision transformer and of its MAE decoder; ViT-B/16 unless said otherwise."""

    image_size: Union[PositiveInt, tuple[PositiveInt, PositiveInt]] = Field(224, description="side, or [height, width]")
    patch_size: int = Field(16, gt=0)
    embed_dim: int = Field(768, gt=0)
    depth: int = Field(12, gt=0)
    num_heads: int = Field(12, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    decoder_embed_dim: int = Field(512, gt=0)
    decoder_depth: int = Field(8, gt=0)
    decoder_num_heads: int = Field(16, gt=0)
    decoder_mlp_ratio: Optional[float] = Field(None, gt=0, description="none means mlp_ratio")
    norm_pix_loss: bool = True
    gelu: Literal["exact", "tanh"] = "exact"
    layer_norm_eps: float = Field(1e-6, gt=0, description="upstream's and timm's; Hugging Face's models have 1e-12")
    pool: Literal["mean", "cls"] = Field(
        "mean", description="what a classifier sees: the patch tokens' mean, then fc_norm; or norm, then the cls token"
    )
    head: Literal["linear", "batch_norm"] = Field(
        "linear", description="batch_norm stands before the linear layer in upstream's linear probe"
    )
    crop_pct: float = Field(0.875, gt=0, le=1, description="centre share of the resized image that evaluation sees")
    pixel_mean: tuple[Share, Share, Share] = Field(
        IMAGENET_MEAN, description="subtracted from RGB between 0 and 1; ImageNet's, where others have 0.5"
    )
    pixel_std: tuple[PositiveShare, PositiveShare, PositiveShare] = Field(
        IMAGENET_STD, description="then divided by; ImageNet's, where others have 0.5"
    )
    num_classes: Optional[int] = Field(None, gt=1, description="checked against the data; none takes the data's")

    @model_validator(mode="after")
    def _divisible(self) -> ModelConfig:
        height, width = self.image_shape
        for name, size, divisor_name, divisor in (
            ("image_size", height, "patch_size", self.patch_size),
            ("image_size", width, "patch_size", self.patch_size),
            ("embed_dim", self.embed_dim, "num_heads", self.num_heads),
            ("embed_dim", self.embed_dim, "4 (sin and cos of two axes)", 4),
            ("decoder_embed_dim", self.decoder_embed_dim, "decoder_num_heads", self.decoder_num_heads),
            ("decoder_embed_dim", self.decoder_embed_dim, "4 (sin and cos of two axes)", 4),
        ):
            if size % divisor:
                raise ValueError(f"{name} must be a multiple of {divisor_name}, got {size} and {divisor}")
        return self

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size


class DeviceConfig(_Section):
    """What the ranks run on. `ranks` counts one server's processes."""

    target: Target = "CPU"
    ranks: int = Field(1, gt=0)
    python: Optional[str] = Field(None, description="interpreter that starts the ranks; none means this one")
    peak_tflops: Optional[float] = Field(
        None, gt=0, description="what MFU is measured against; none means 256 for float16 on Ascend, no MFU on CPU"
    )


class ComputeConfig(_Section):
    """How the model is computed, not what it is. Parameters, LayerNorm, softmax and the loss are float32 always."""

    dtype: Optional[Literal["float32", "float16"]] = Field(
        None, description="of matrix products; none means float16 on Ascend, which a 910A needs, and float32 on CPU"
    )
    decoder_float32: bool = Field(False, description="keep the decoder in float32, where float16 runs go NaN first")
    recompute: bool = Field(
        False, description="compute blocks again for their gradients: less memory, a third more time"
    )

    @property
    def float32_products(self) -> bool:
        """Whether matrix products are asked for in float32, some at least."""
        return self.dtype == "float32" or self.decoder_float32


class _Training(_Section):
    epochs: int = Field(gt=0)
    batch_size: int = Field(64, gt=0, description="images per rank and step")
    accum_iter: int = Field(1, gt=0, description="steps whose gradients are averaged before one update")
    blr: float = Field(gt=0, description=LR_RULE)
    min_lr: float = Field(0.0, ge=0)
    warmup_epochs: float = Field(ge=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_grad: Optional[float] = Field(None, gt=0, description="largest norm of all gradients together")
    ema: Optional[float] = Field(
        None, gt=0, lt=1, description="moving average of the weights, kept per update; written as ema.safetensors"
    )
    checkpoint_epochs: int = Field(20, gt=0, description="epochs between checkpoints; the last epoch always has one")
    checkpoint_steps: Optional[int] = Field(None, gt=0, description="updates between further checkpoints")
    keep_checkpoints: int = Field(3, gt=0, description="newest checkpoints that are kept")
    keep_epochs: Optional[int] = Field(
        None, gt=0, description="a checkpoint at the end of every so many epochs is kept for ever"
    )

    @model_validator(mode="after")
    def _schedule_can_be_meant(self) -> _Training:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be below epochs, got {self.warmup_epochs} and {self.epochs}")
        return self

    def lr(self, *, ranks: int) -> float:
        """The learning rate behind the warm-up."""
        return base_lr(self.blr, batch_size=self.batch_size, ranks=ranks, accum_iter=self.accum_iter)

    def checkpoint_due(self, step: int, updates: int) -> bool:
        """Whether there is a checkpoint behind a step of a run that has so many updates an epoch."""
        if self.checkpoint_steps is not None and step % self.checkpoint_steps == 0:
            return True
        epoch, within = divmod(step, updates)
        every = filter(None, (self.epochs, self.checkpoint_epochs, self.keep_epochs))
        return within == 0 and any(epoch % number == 0 for number in every)


class PretrainConfig(_Training):
    """MAE pre-training, as published unless said otherwise (He et al. 2022, table 8, at 4,096 images an update)."""

    epochs: int = Field(800, gt=0)
    blr: float = Field(1.5e-4, gt=0, description=LR_RULE)
    warmup_epochs: float = Field(40, ge=0)
    betas: tuple[Memory, Memory] = (0.9, 0.95)
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    crop_scale: float = Field(0.2, gt=0, le=1, description="smallest share of the area that a random crop keeps")
    eval_epochs: Optional[int] = Field(
        None,
        gt=0,
        description="epochs between evaluations of the encoder on the validation images; none: no evaluation",
    )
    eval_protocols: list[Literal["knn", "linear"]] = Field(["knn"], min_length=1, description="see `mae evaluate`")
    eval_images: int = Field(
        10_000, gt=0, description="images of train and of val, at most each, that these evaluations take"
    )
    on_non_finite: Literal["stop", "decoder_float32"] = Field(
        "stop", description="decoder_float32: go back to the last checkpoint once, and on with the decoder in float32"
    )

    def evaluation_due(self, step: int, updates: int) -> bool:
        """Whether the encoder is evaluated behind a step of a run that has so many updates an epoch."""
        return self.eval_epochs is not None and step % (self.eval_epochs * updates) == 0


class FinetuneConfig(_Training):
    """End-to-end fine-tuning of a pre-trained encoder, as published for ViT-B unless said otherwise.

    He et al. 2022, table 9, at 1,024 images an update.
    """

    epochs: int = Field(100, gt=0)
    batch_size: int = Field(32, gt=0, description="images per rank and step")
    blr: float = Field(5e-4, gt=0, description=LR_RULE)
    min_lr: float = Field(1e-6, ge=0)
    warmup_epochs: float = Field(5, ge=0)
    betas: tuple[Memory, Memory] = (0.9, 0.999)
    layer_decay: float = Field(0.65, gt=0, le=1)
    drop_path: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    mixup: float = Field(0.8, ge=0, description="alpha of the Beta distribution that shares are drawn from; 0: off")
    cutmix: float = Field(1.0, ge=0, description="the same; with both on, each batch takes one, by equal chance")
    crop_scale: float = Field(0.08, gt=0, le=1)
    rand_augment: Optional[str] = Field(
        "rand-m9-mstd0.5-inc1", description="timm's name for its RandAugment, rand-mM-mstdS-inc1; none: off"
    )
    random_erasing: Share = Field(0.25, description="probability that a box of an image becomes noise; 0: off")

    @field_validator("rand_augment")
    @classmethod
    def _known_rand_augment(cls, spec: Optional[str]) -> Optional[str]:
        if spec is not None:
            rand_augment(spec, mean=IMAGENET_MEAN)
        return spec


class LinprobeConfig(_Training):
    """Upstream's linear probe: batch normalisation and a linear layer on the frozen encoder's cls token, by LARS.

    As published for ViT-B unless said otherwise (He et al. 2022, table 10, at 16,384 images an update).
    """

    epochs: int = Field(90, gt=0)
    batch_size: int = Field(512, gt=1, description="images per rank and step; batch normalisation needs two")
    blr: float = Field(0.1, gt=0, description=LR_RULE)
    warmup_epochs: float = Field(10, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: Memory = 0.9
    trust: float = Field(0.001, gt=0, description="norm of a layer's step at learning rate 1, per norm of its weights")
    crop_scale: float = Field(0.08, gt=0, le=1)


Recipe = Union[PretrainConfig, FinetuneConfig, LinprobeConfig]


class LinearConfig(_Section):
    """Linear probe: multinomial logistic regression on standardised frozen features."""

    pool: Literal["cls", "mean"] = "cls"
    l2: list[float] = Field(
        [1e-4, 1e-3, 1e-2, 1e-1],
        min_length=1,
        description="of several penalties a held-out fifth of train chooses one per encoder",
    )
    tol: float = Field(1e-3, gt=0, description="largest gradient at which the fit counts as converged")


class Config(_Section):
    """One job. `task` says which section `mae train` runs; the pipeline runs every section that is there."""

    task: Literal["pretrain", "finetune", "linprobe"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = 0
    init: Optional[str] = Field(None, description="checkpoint that fine-tuning or a linear probe starts from")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    device: DeviceConfig = DeviceConfig()
    compute: ComputeConfig = ComputeConfig()
    pretrain: Optional[PretrainConfig] = None
    finetune: Optional[FinetuneConfig] = None
    linprobe: Optional[LinprobeConfig] = None
    linear: Optional[LinearConfig] = None

    @model_validator(mode="after")
    def _task_has_its_section(self) -> Config:
        if getattr(self, self.task) is None:
            raise ValueError(f"task is {self.task}, so a section `{self.task}:` is needed")
        return self

    @model_validator(mode="after")
    def _recipes_can_be_meant(self) -> Config:
        for name, recipe in self.recipes():
            lr = recipe.lr(ranks=self.device.ranks)
            if recipe.min_lr >= lr:
                rule = f"{lr:.3g} by {LR_RULE}"
                raise ValueError(f"{name}.min_lr must be below the learning rate, got {recipe.min_lr:.3g} and {rule}")
        patches = self.model.grid[0] * self.model.grid[1]
        if self.pretrain is not None and not 0 < kept_patches(patches, self.pretrain.mask_ratio) < patches:
            ratio = self.pretrain.mask_ratio
            raise ValueError(f"pretrain.mask_ratio must leave some patches and remove some, got {ratio} of {patches}")
        return self

    def recipes(self) -> list[tuple[str, Recipe]]:
        """The sections that train, by name."""
        named = (("pretrain", self.pretrain), ("finetune", self.finetune), ("linprobe", self.linprobe))
        return [(name, recipe) for name, recipe in named if recipe is not None]

    @property
    def recipe(self) -> Recipe:
        """The section of the task."""
        return dict(self.recipes())[self.task]


def load_config(path: Union[str, Path], overrides: Iterable[str] = ()) -> Config:
    """Read a YAML job config and apply `key.sub=value` overrides, whose values are YAML.

    Raises:
        InputError: the file is missing or no YAML mapping, a key is unknown, or a value is out of range.
    """
    return parse_config(overridden(read_mapping(path), overrides), source=path)


def read_mapping(path: Union[str, Path]) -> dict[str, Any]:
    """What stands in a YAML job config, unchecked."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, expected="a YAML job config", found="no such file", todo="see configs/ for examples")
    values = _yaml(path.read_bytes(), where=path)
    if not isinstance(values, dict):
        raise InputError(path, expected="a YAML mapping", found=type(values).__name__, todo="see configs/ for examples")
    return values


def overridden(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`values` with `key.sub=value` overrides applied, whose values are YAML."""
    for override in overrides:
        _apply(values, override)
    return values


def published_recipe(
    task: Literal["pretrain", "finetune"], model: ModelConfig, given: dict[str, Any], *, ranks: int
) -> dict[str, Any]:
    """A config section that fills up what is `given` with the published recipe for a model of this size.

    The defaults above are ViT-B's; larger models are fine-tuned for fewer epochs, at a larger learning rate
    (facebookresearch/mae's FINETUNE.md). Gradients are accumulated to the published number of images an update.
    """
    larger: dict[str, Any] = {}
    if task == "finetune" and model.embed_dim >= 1024:
        drop_path = 0.2 if model.embed_dim < 1280 else 0.3
        larger = {"epochs": 50, "blr": 1e-3, "layer_decay": 0.75, "drop_path": drop_path}
    defaults, images = (PretrainConfig(), 4096) if task == "pretrain" else (FinetuneConfig(), 1024)
    batch_size = given.get("batch_size", defaults.batch_size)
    accum_iter = max(1, images // (batch_size * ranks)) if isinstance(batch_size, int) and batch_size > 0 else 1
    return {**larger, "accum_iter": accum_iter, **given}


def parse_config(values: dict[str, Any], *, source: object) -> Config:
    """Check a mapping against the types above; `source` names it in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f"{source}: {key}" if key else str(source)
        if first["type"] == "extra_forbidden":
            known = _keys_beside(first["loc"])
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it or correct its name"
            raise InputError(where, expected=f"one of {', '.join(known)}", found="an unknown key", todo=hint) from None
        if first["type"] == "value_error":  # of a validator above: says itself what it expected and got
            raise InputError(
                where, expected="values that fit", found=str(first["ctx"]["error"]), todo="correct them"
            ) from None
        raise InputError(where, expected=first["msg"], found=repr(first["input"]), todo="correct the value") from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Values by key of `key=value` texts, whose values are YAML."""
    values: dict[str, Any] = {}
    for override in overrides:
        _apply(values, override)
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(
            f"--set {override}", expected="key=value", found=repr(override), todo="e.g. --set pretrain.epochs=5"
        )
    *parents, last = key.split(".")
    for parent in parents:
        child = values.get(parent)
        if child is None:
            child = values[parent] = {}
        if not isinstance(child, dict):
            raise InputError(
                f"--set {override}", expected=f"a section named {parent}", found=repr(child), todo="see the config"
            )
        values = child
    values[last] = _yaml(text, where=f"--set {override}")


def _yaml(text: Union[str, bytes], *, where: object) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(where, expected="YAML", found=str(error), todo="correct it") from None


def _keys_beside(location: tuple[Any, ...]) -> list[str]:
    """Names of the fields that stand beside an unknown key."""
    model: Any = Config
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        model = next((a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")), annotation)
    return sorted(model.model_fields)
