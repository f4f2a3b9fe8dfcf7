"""Floating-point operations of the model's matrix products, two per multiplication and addition.

LayerNorm, softmax and GELU add about 1 % on ViT-B and are left out, as is usual where a rate is compared with a peak.
"""

from __future__ import annotations

from mae.config.sections import Config, LinearConfig, ModelConfig, PretrainConfig, Recipe
from mae.masking import kept_patches

TRAINING = 3  # forward, and twice that backward: by the inputs and by the weights
PEAK_910A = 256e12  # FLOP/s in float16 (Ascend's data sheet)


def training_flops(model: ModelConfig, recipe: Recipe) -> float:
    """One image of a training step; blocks that are computed again for their gradients count once."""
    if isinstance(recipe, PretrainConfig):
        return TRAINING * mae_flops(model, recipe.mask_ratio)
    return encoder_flops(model) * (1 if isinstance(recipe, LinearConfig) else TRAINING)


def peak_flops(config: Config) -> float | None:
    """What a device can do at most, FLOP/s: `device.peak_tflops`, or a 910A's data sheet for float16, or not known.

    A CPU has no peak here: what a product reaches depends on its shape and on how many cores a rank has.
    """
    if config.device.peak_tflops is not None:
        return config.device.peak_tflops * 1e12
    half = config.compute.dtype in (None, "float16")
    return PEAK_910A if config.device.target == "Ascend" and half else None


def block_flops(tokens: int, width: int, mlp_ratio: float) -> float:
    """One transformer block on one image: qkv and projection 8 n d^2, MLP 4 r n d^2, attention 4 n^2 d."""
    return (8 + 4 * mlp_ratio) * tokens * width**2 + 4 * tokens**2 * width


def mae_flops(model: ModelConfig, mask_ratio: float) -> float:
    """Forward pass of a masked autoencoder on one image: all patches embedded, the kept ones encoded, all decoded."""
    patches, pixels = _patches(model), 3 * model.patch_size**2
    visible, width = 1 + kept_patches(patches, mask_ratio), model.decoder_embed_dim
    mlp_ratio = model.decoder_mlp_ratio or model.mlp_ratio
    encoder = model.depth * block_flops(visible, model.embed_dim, model.mlp_ratio)
    decoder = model.decoder_depth * block_flops(1 + patches, width, mlp_ratio)
    joint = 2 * visible * model.embed_dim * width
    return _embedding(model) + encoder + joint + decoder + 2 * (1 + patches) * width * pixels


def encoder_flops(model: ModelConfig) -> float:
    """Forward pass of the whole encoder on one image: fine-tuning, features, classification."""
    return _embedding(model) + model.depth * block_flops(1 + _patches(model), model.embed_dim, model.mlp_ratio)


def _embedding(model: ModelConfig) -> float:
    return 2 * _patches(model) * 3 * model.patch_size**2 * model.embed_dim


def _patches(model: ModelConfig) -> int:
    rows, columns = model.grid
    return rows * columns
