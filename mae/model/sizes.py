"""Floating-point operations of the model's matrix products, two per multiplication and addition.

LayerNorm, softmax and GELU add about 1 % on ViT-B. They are left out, as is usual for a share of the peak rate.
"""

from __future__ import annotations

from mae.config.sections import Config, LinearConfig, ModelConfig, PretrainConfig, Recipe
from mae.masking import kept_patches

TRAINING = 3  # one forward pass, and twice as much backward: gradients of inputs and of weights
PEAK_910A = 256e12  # FLOP/s in float16 (Ascend's data sheet)


def training_flops(model: ModelConfig, recipe: Recipe) -> float:
    """Return the FLOP of one image in a training step. Recomputed blocks count once."""
    if isinstance(recipe, PretrainConfig):
        return TRAINING * mae_flops(model, recipe.mask_ratio)
    return encoder_flops(model) * (1 if isinstance(recipe, LinearConfig) else TRAINING)


def peak_flops(config: Config) -> float | None:
    """Return a device's peak rate in FLOP/s: `device.peak_tflops`, or a 910A's data sheet for float16; else none.

    A CPU has no known peak: the rate of a product depends on its shape and on the cores of a rank.
    """
    if config.device.peak_tflops is not None:
        return config.device.peak_tflops * 1e12
    half = config.compute.dtype in (None, "float16")
    return PEAK_910A if config.device.target == "Ascend" and half else None


def block_flops(tokens: int, width: int, mlp_ratio: float) -> float:
    """Return the FLOP of a block on one image: qkv and projection 8 n d^2, MLP 4 r n d^2, attention 4 n^2 d."""
    return (8 + 4 * mlp_ratio) * tokens * width**2 + 4 * tokens**2 * width


def mae_flops(model: ModelConfig, mask_ratio: float) -> float:
    """Return the FLOP of a MAE's forward pass on one image: embed all patches, encode the visible ones, decode all."""
    patches, pixels = _patches(model), 3 * model.patch_size**2
    visible, width = 1 + kept_patches(patches, mask_ratio), model.decoder_embed_dim
    mlp_ratio = model.decoder_mlp_ratio or model.mlp_ratio
    encoder = model.depth * block_flops(visible, model.embed_dim, model.mlp_ratio)
    decoder = model.decoder_depth * block_flops(1 + patches, width, mlp_ratio)
    joint = 2 * visible * model.embed_dim * width
    return _embedding(model) + encoder + joint + decoder + 2 * (1 + patches) * width * pixels


def encoder_flops(model: ModelConfig) -> float:
    """Return the FLOP of the encoder's forward pass on one whole image: fine-tuning, features, classification."""
    return _embedding(model) + model.depth * block_flops(1 + _patches(model), model.embed_dim, model.mlp_ratio)


def _embedding(model: ModelConfig) -> float:
    return 2 * _patches(model) * 3 * model.patch_size**2 * model.embed_dim


def _patches(model: ModelConfig) -> int:
    rows, columns = model.grid
    return rows * columns
