"""The types of a job config. A key that is not listed here is an error.

docs/config.md is made of these docstrings and descriptions, so every field has one. Pydantic evaluates the annotations,
also on Python 3.9: write Optional and Union.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    create_model,
    field_validator,
    model_validator,
)

from datasets.augmentation import rand_augment
from mae.config.protocols import frozen_protocols, protocols
from mae.masking import kept_patches

Target = Literal["CPU", "Ascend"]
Task = Literal["pretrain", "finetune", "linear"]
LR_RULE = "lr = blr * batch_size * ranks * accum_iter / 256"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # share of the old value that a moving average keeps


class Section(BaseModel, extra="forbid", protected_namespaces=()):
    """Base of all sections: an unknown key is an error."""


class DataConfig(Section):
    """Where the images are and how they are stored."""

    root: Optional[str] = Field(None, description="folder of images; none: the shipped Fashion-MNIST sample")
    name: Optional[str] = Field(None, description="name of the data set in the workspace; none: the folder's name")
    records: Optional[str] = Field(
        None, description="directory that `mae data shard` wrote; the pipeline fills this in"
    )
    val_share: float = Field(
        0.1, gt=0, lt=1, description="share of each class that is held out when the root has no train/ and val/"
    )
    policy: dict[str, str] = Field(
        {}, description="action per fault: fail, exclude, convert or accept; see `mae data validate`"
    )
    expect: Optional[Literal["imagenet-1k"]] = Field(
        None, description="fail unless the images are this published data set"
    )
    near_duplicates: Optional[int] = Field(
        None, ge=0, le=8, description="report pictures whose 64-bit perceptual hashes differ in at most this many bits"
    )
    min_side: int = Field(16, gt=0, description="report images with a shorter side, in pixels")
    shard_mb: int = Field(1024, gt=0, description="image bytes per MindRecord shard, in MB")
    short_side: Optional[int] = Field(
        None, gt=0, description="store images resized to this shorter side, in pixels; none: store the original bytes"
    )
    workers: int = Field(2, gt=0, description="threads per rank that decode images")
    dask: Optional[str] = Field(
        None,
        description="address of a Dask scheduler that prepares the data, e.g. tcp://host:8786; none: this machine",
    )


class ModelConfig(Section):
    """Sizes of the vision transformer and of the MAE decoder. The defaults are ViT-B/16."""

    image_size: Union[PositiveInt, tuple[PositiveInt, PositiveInt]] = Field(
        224, description="side in pixels, or [height, width]"
    )
    patch_size: int = Field(16, gt=0, description="side of a patch in pixels")
    embed_dim: int = Field(768, gt=0, description="width of the encoder")
    depth: int = Field(12, gt=0, description="blocks of the encoder")
    num_heads: int = Field(12, gt=0, description="attention heads of the encoder")
    mlp_ratio: float = Field(
        4.0, gt=0, description="width of the MLP in the encoder's blocks, as a multiple of embed_dim"
    )
    decoder_embed_dim: int = Field(512, gt=0, description="width of the decoder")
    decoder_depth: int = Field(8, gt=0, description="blocks of the decoder")
    decoder_num_heads: int = Field(16, gt=0, description="attention heads of the decoder")
    decoder_mlp_ratio: Optional[float] = Field(None, gt=0, description="mlp_ratio of the decoder; none: the encoder's")
    norm_pix_loss: bool = Field(
        True, description="the loss compares with each patch normalised by its own mean and variance"
    )
    gelu: Literal["exact", "tanh"] = Field("exact", description="GELU by the error function, or its tanh approximation")
    layer_norm_eps: float = Field(
        1e-6,
        gt=0,
        description="epsilon of LayerNorm; 1e-6 in facebookresearch/mae and timm, 1e-12 in Hugging Face's models",
    )
    pool: Literal["mean", "cls"] = Field(
        "mean", description="input of a classifier's head: fc_norm of the patch tokens' mean, or the normed class token"
    )
    head: Literal["linear", "batch_norm"] = Field(
        "linear",
        description="batch_norm: batch normalisation before the linear layer, as in the published linear probe",
    )
    crop_pct: float = Field(
        0.875, gt=0, le=1, description="share of the resized image's side that the centre crop of an evaluation keeps"
    )
    pixel_mean: tuple[Share, Share, Share] = Field(
        IMAGENET_MEAN, description="mean of R, G and B between 0 and 1, subtracted from the pixels"
    )
    pixel_std: tuple[PositiveShare, PositiveShare, PositiveShare] = Field(
        IMAGENET_STD, description="standard deviation of R, G and B between 0 and 1, which the pixels are divided by"
    )
    num_classes: Optional[int] = Field(
        None, gt=1, description="number of classes, compared with the data; none: the data's number"
    )

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


class DeviceConfig(Section):
    """The devices and processes that a job uses."""

    target: Target = Field("CPU", description="kind of device")
    ranks: int = Field(1, gt=0, description="processes per server; on Ascend one per NPU")
    python: Optional[str] = Field(None, description="interpreter that computes; none: $MAE_PYTHON, or the current one")
    hccl_connect_seconds: int = Field(
        1800,
        ge=120,
        le=7200,
        description="seconds that ranks on Ascend wait for each other; `$HCCL_CONNECT_TIMEOUT` of a rank",
    )
    peak_tflops: Optional[float] = Field(
        None,
        gt=0,
        description="peak rate of a device in TFLOP/s, which MFU is relative to; none: 256 for float16 on Ascend, "
        "and no MFU on a CPU",
    )


class EvaluateConfig(Section):
    """Where the evaluation protocols measure. Protocols that train do that on `device.target` all the same."""

    target: Optional[Target] = Field(
        None,
        description="kind of device that computes features and classes; none: device.target. With CPU, the nightly "
        "evaluation needs no NPU; otherwise it waits until device.ranks NPUs are free",
    )


class ComputeConfig(Section):
    """Precision and memory of the computation. Parameters, LayerNorm, softmax and the loss are always float32."""

    dtype: Optional[Literal["float32", "float16"]] = Field(
        None, description="type of matrix products; none: float16 on Ascend, which a 910A needs, and float32 on a CPU"
    )
    decoder_float32: bool = Field(
        False, description="compute the decoder in float32, where float16 runs become NaN first"
    )
    recompute: bool = Field(
        False, description="compute blocks a second time for their gradients: less memory, a third more time"
    )

    @property
    def float32_products(self) -> bool:
        """Whether at least some matrix products are requested in float32."""
        return self.dtype == "float32" or self.decoder_float32


class TrainingSection(Section):
    """The keys that all recipes have."""

    epochs: int = Field(gt=0, description="passes over the training images")
    batch_size: int = Field(64, gt=0, description="images per rank and step")
    accum_iter: int = Field(1, gt=0, description="steps whose gradients are averaged for one update")
    blr: float = Field(gt=0, description=LR_RULE)
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine schedule")
    warmup_epochs: float = Field(ge=0, description="epochs in which the learning rate rises linearly from 0")
    weight_decay: float = Field(0.05, ge=0, description="weight decay of matrices; biases and norms have none")
    clip_grad: Optional[float] = Field(None, gt=0, description="largest norm of the whole gradient; none: no clipping")
    ema: Optional[float] = Field(
        None, gt=0, lt=1, description="decay per update of a moving average of the weights, written as ema.safetensors"
    )
    checkpoint_epochs: int = Field(20, gt=0, description="epochs between checkpoints; the last epoch always writes one")
    checkpoint_steps: Optional[int] = Field(None, gt=0, description="updates between additional checkpoints")
    keep_checkpoints: int = Field(3, gt=0, description="number of newest checkpoints that are kept")
    keep_epochs: Optional[int] = Field(
        None, gt=0, description="keep a checkpoint for ever at the end of every this many epochs"
    )

    @model_validator(mode="after")
    def _warm_up_ends(self) -> TrainingSection:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be below epochs, got {self.warmup_epochs} and {self.epochs}")
        return self

    def lr(self, *, ranks: int) -> float:
        """Return the learning rate at the end of the warm-up: blr * images per update / 256 (Goyal et al. 2017)."""
        return self.blr * self.batch_size * ranks * self.accum_iter / 256

    def checkpoint_due(self, step: int, updates: int) -> bool:
        """Return whether a run with `updates` updates per epoch writes a checkpoint after `step`."""
        if self.checkpoint_steps is not None and step % self.checkpoint_steps == 0:
            return True
        epoch, within = divmod(step, updates)
        every = filter(None, (self.epochs, self.checkpoint_epochs, self.keep_epochs))
        return within == 0 and any(epoch % number == 0 for number in every)


class PretrainConfig(TrainingSection):
    """MAE pre-training. The defaults are published: He et al. 2022, table 8, at 4,096 images per update."""

    epochs: int = Field(800, gt=0, description="passes over the training images")
    blr: float = Field(1.5e-4, gt=0, description=LR_RULE)
    warmup_epochs: float = Field(40, ge=0, description="epochs in which the learning rate rises linearly from 0")
    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="AdamW's decay of the first and second moment")
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of the patches that the encoder does not see")
    crop_scale: float = Field(0.2, gt=0, le=1, description="smallest share of the area that a random crop keeps")
    eval_epochs: Optional[int] = Field(
        None,
        gt=0,
        description="epochs between evaluations of the encoder on the validation images; none: no evaluation",
    )
    eval_protocols: list[str] = Field(
        ["knn"], min_length=1, description="protocols on frozen features that these evaluations use: knn, logistic"
    )
    eval_images: int = Field(
        10_000, gt=0, description="largest number of images of each split that these evaluations use"
    )
    on_non_finite: Literal["stop", "decoder_float32"] = Field(
        "stop",
        description="decoder_float32: after a loss that is not finite, return once to the last checkpoint and "
        "continue with the decoder in float32",
    )

    @field_validator("eval_protocols")
    @classmethod
    def _frozen(cls, names: list[str]) -> list[str]:
        known = frozen_protocols()
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"eval_protocols must be of {', '.join(known)}, got {', '.join(unknown)}")
        return names

    def evaluation_due(self, step: int, updates: int) -> bool:
        """Return whether a run with `updates` updates per epoch evaluates its encoder after `step`."""
        return self.eval_epochs is not None and step % (self.eval_epochs * updates) == 0


class FinetuneConfig(TrainingSection):
    """End-to-end fine-tuning of a pre-trained encoder.

    The defaults are published for ViT-B: He et al. 2022, table 9, at 1,024 images per update.
    """

    epochs: int = Field(100, gt=0, description="passes over the training images")
    batch_size: int = Field(32, gt=0, description="images per rank and step")
    blr: float = Field(5e-4, gt=0, description=LR_RULE)
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine schedule")
    warmup_epochs: float = Field(5, ge=0, description="epochs in which the learning rate rises linearly from 0")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's decay of the first and second moment")
    layer_decay: float = Field(
        0.65, gt=0, le=1, description="factor on the learning rate from each block to the one before"
    )
    drop_path: float = Field(0.1, ge=0, lt=1, description="rate of stochastic depth in the last block; 0 in the first")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread evenly over all classes")
    mixup: float = Field(0.8, ge=0, description="alpha of the Beta distribution of mixup's shares; 0: no mixup")
    cutmix: float = Field(
        1.0, ge=0, description="the same for cutmix; with both, each batch uses one of them with equal probability"
    )
    crop_scale: float = Field(0.08, gt=0, le=1, description="smallest share of the area that a random crop keeps")
    rand_augment: Optional[str] = Field(
        "rand-m9-mstd0.5-inc1", description="RandAugment by timm's name, rand-mM-mstdS-inc1; none: off"
    )
    random_erasing: Share = Field(0.25, description="probability that a box of an image is replaced by noise; 0: off")

    @field_validator("rand_augment")
    @classmethod
    def _known_rand_augment(cls, spec: Optional[str]) -> Optional[str]:
        if spec is not None:
            rand_augment(spec, mean=IMAGENET_MEAN)
        return spec


class LinearConfig(TrainingSection):
    """The published linear probe: batch normalisation and a linear layer on the frozen class token, trained by LARS.

    The defaults are published for ViT-B: He et al. 2022, table 10, at 16,384 images per update.
    """

    epochs: int = Field(90, gt=0, description="passes over the training images")
    batch_size: int = Field(512, gt=1, description="images per rank and step; batch normalisation needs two")
    blr: float = Field(0.1, gt=0, description=LR_RULE)
    warmup_epochs: float = Field(10, ge=0, description="epochs in which the learning rate rises linearly from 0")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the linear layer's matrix")
    momentum: Decay = Field(0.9, description="LARS's momentum")
    trust: float = Field(
        0.001,
        gt=0,
        description="LARS's trust coefficient: norm of an update at learning rate 1 per norm of the weights",
    )
    crop_scale: float = Field(0.08, gt=0, le=1, description="smallest share of the area that a random crop keeps")


Recipe = Union[PretrainConfig, FinetuneConfig, LinearConfig]


class Config(Section):
    """One job. `mae train` runs the section that `task` names; the pipeline evaluates by every other section.

    Further sections belong to evaluation protocols, whose files have their types (see `mae.config.protocols`).
    """

    model_config = ConfigDict(extra="allow")  # protocols' sections; `_protocol_sections` refuses everything else

    task: Task = Field(description="the section that `mae train` runs")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="name of the run")
    seed: int = Field(0, description="seed of the weights, of the order of images, of crops and of masks")
    init: Optional[str] = Field(None, description="checkpoint that fine-tuning or a linear probe starts from")
    data: DataConfig = Field(DataConfig(), description="see below")
    model: ModelConfig = Field(ModelConfig(), description="see below")
    device: DeviceConfig = Field(DeviceConfig(), description="see below")
    compute: ComputeConfig = Field(ComputeConfig(), description="see below")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="see below")
    pretrain: Optional[PretrainConfig] = Field(None, description="see below")
    finetune: Optional[FinetuneConfig] = Field(None, description="see below")
    linear: Optional[LinearConfig] = Field(None, description="see below")

    @model_validator(mode="after")
    def _protocol_sections(self) -> Config:
        if self.model_extra:
            fields: dict[str, Any] = {name: (Optional[module.Settings], None) for name, module in protocols().items()}
            typed = create_model("Sections", __base__=Section, **fields).model_validate(self.model_extra)
            self.model_extra.update({name: getattr(typed, name) for name in self.model_extra})
        return self

    @model_validator(mode="after")
    def _task_has_its_section(self) -> Config:
        if getattr(self, self.task) is None:
            raise ValueError(f"task is {self.task}, so a section `{self.task}:` is needed")
        return self

    @model_validator(mode="after")
    def _recipes_are_possible(self) -> Config:
        for name, recipe in self.recipes():
            lr = recipe.lr(ranks=self.device.ranks)
            if recipe.min_lr >= lr:
                rule = f"{lr:.3g} by {LR_RULE}"
                raise ValueError(f"{name}.min_lr must be below the learning rate, got {recipe.min_lr:.3g} and {rule}")
        patches = self.model.grid[0] * self.model.grid[1]
        if self.pretrain is not None and not 0 < kept_patches(patches, self.pretrain.mask_ratio) < patches:
            ratio = self.pretrain.mask_ratio
            raise ValueError(f"pretrain.mask_ratio must keep and remove at least one patch, got {ratio} of {patches}")
        return self

    def recipes(self) -> list[tuple[str, Recipe]]:
        """Return the sections that train, with their names."""
        named = (("pretrain", self.pretrain), ("finetune", self.finetune), ("linear", self.linear))
        return [(name, recipe) for name, recipe in named if recipe is not None]

    @property
    def measured_on(self) -> DeviceConfig:
        """The devices that the evaluation protocols measure on."""
        return self.device.model_copy(update={"target": self.evaluate.target or self.device.target})

    @property
    def recipe(self) -> Recipe:
        """The section of the task."""
        return dict(self.recipes())[self.task]

    def section(self, protocol: str) -> Optional[Section]:
        """Return a protocol's section; none where the config has none."""
        return getattr(self, protocol, None)
