"""Floating-point operations of the model's matrix products, two per multiplication and addition.

LayerNorm, softmax and GELU add about 1 % on ViT-B and are left out, as is usual where a rate is compared with a peak.
"""

from __future__ import annotations

from .config import ModelConfig
from .masking import kept_patches

TRAINING = 3  # forward, and twice that backward: by the inputs and by the weights


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
