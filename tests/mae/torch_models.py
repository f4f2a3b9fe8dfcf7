"""Models of torch and transformers with random weights, for tests of conversion and parity."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

TINY_HF = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 30,
    "patch_size": 5,
}
TINY_DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0, spread: float = 1.0) -> nn.Module:
    """Randomise all parameters, also biases, norms, tokens and position embeddings, so that each affects the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not value.is_floating_point():
            value.fill_(7)
        elif "running_var" in name:
            value.uniform_(0.5, 2, generator=generator)
        elif value.ndim > 1 and not any(part in name for part in ("token", "pos")):
            value.normal_(0, spread / value[0].numel() ** 0.5, generator=generator)
        elif "norm" in name and name.endswith("weight"):
            value.normal_(1, 0.2, generator=generator)
        else:
            value.normal_(0, 0.2, generator=generator)
    return model.eval()


def hf_mae(seed: int = 0, **config):
    """Return a ViTMAEForPreTraining."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    return randomise(ViTMAEForPreTraining(ViTMAEConfig(**{**TINY_HF, **TINY_DECODER, **config})), seed)


def hf_classifier(seed: int = 0, labels: int = 5, **config):
    """Return a ViTForImageClassification."""
    from transformers import ViTConfig, ViTForImageClassification

    return randomise(ViTForImageClassification(ViTConfig(**{**TINY_HF, **config}, num_labels=labels)), seed)


def published_weights(sizes, seed=0):
    """Return a random state dict with upstream's keys."""
    from mae.model.mae import MaskedAutoencoder

    rng = np.random.default_rng(seed)
    parameters = MaskedAutoencoder(sizes).get_parameters()
    return {p.name: torch.from_numpy(rng.standard_normal(p.shape, np.float32) * 0.05) for p in parameters}


def images(shape: tuple[int, int], count: int = 2, seed: int = 0) -> np.ndarray:
    """Return normalised images, float32 (N, 3, H, W)."""
    return np.random.default_rng(seed).standard_normal((count, 3, *shape)).astype(np.float32)


class Attention(nn.Module):
    """As timm's."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(
            (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2)
        )


class Block(nn.Module):
    """As timm's."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn = Attention(dim, heads)
        self.mlp = nn.Sequential()
        self.mlp.fc1, self.mlp.act, self.mlp.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TimmViT(nn.Module):
    """A vision transformer with timm's state-dict keys; `head` is linear, batch_norm (upstream's probe) or none."""

    def __init__(
        self, *, size=(30, 30), patch=5, dim=24, depth=2, heads=3, pool="cls", head="linear", classes=5
    ) -> None:
        super().__init__()
        self.pool = pool
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + size[0] // patch * (size[1] // patch), dim))
        self.patch_embed = nn.Sequential()
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, patch)
        self.blocks = nn.Sequential(*[Block(dim, heads, 4 * dim) for _ in range(depth)])
        norm = nn.LayerNorm(dim, 1e-6)
        if pool == "mean":
            self.fc_norm = norm
        else:
            self.norm = norm
        linear = nn.Linear(dim, classes)
        if head != "none":
            probe = nn.Sequential(nn.BatchNorm1d(dim, affine=False, eps=1e-6), linear)
            self.head = probe if head == "batch_norm" else linear

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        x = self.blocks(x)
        if not hasattr(self, "head"):
            return self.norm(x)
        return self.head(self.fc_norm(x[:, 1:].mean(1)) if self.pool == "mean" else self.norm(x)[:, 0])
