"""Vision transformer: the one definition of encoder blocks that the MAE and the classifier share.

Parameter names are facebookresearch/mae's and timm's state-dict keys, so weights convert by copying. Weights of linear
layers are (out, in). N images, L patches, D channels, T tokens.
"""

from __future__ import annotations

import math
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, TruncatedNormal, Uniform, XavierUniform, initializer

from .config import ModelConfig
from .pos_embed import sincos_2d

LAYER_NORM_EPS = 1e-6  # upstream; torch's default of 1e-5 changes every prediction


class Linear(nn.Cell):
    """y = x W^T + b over the last axis; W is (out, in), Xavier-uniform, b zero (upstream's initialisation)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(initializer(XavierUniform(), (out_features, in_features), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (out_features,), ms.float32), name="bias")
        self.matmul = ops.MatMul(transpose_b=True)
        self.add = ops.BiasAdd()

    def construct(self, x: Tensor) -> Tensor:
        rows = self.add(self.matmul(x.reshape(-1, self.in_features), self.weight), self.bias)
        return rows.reshape(x.shape[:-1] + (self.out_features,))


class LayerNorm(nn.Cell):
    """Layer normalisation over the last axis with upstream's names and epsilon."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = Parameter(initializer("ones", (dim,), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (dim,), ms.float32), name="bias")
        self.norm = _CpuNorm() if ms.get_context("device_target") == "CPU" else _FusedNorm()

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(x, self.weight, self.bias)


class _FusedNorm(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=LAYER_NORM_EPS)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.norm(x, weight, bias)[0]


class _CpuNorm(_FusedNorm):
    """The same forward kernel with a gradient of plain operators.

    MindSpore's LayerNormGrad takes two powers per element on the CPU, a quarter of a small model's step.
    """

    def bprop(self, x: Tensor, weight: Tensor, _bias: Tensor, _out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        dim = x.shape[-1]
        rows, d_rows = x.reshape(-1, dim), dout.reshape(-1, dim)
        centred = rows - rows.mean(-1, keep_dims=True)
        scale = ops.rsqrt(ops.square(centred).mean(-1, keep_dims=True) + LAYER_NORM_EPS)
        standard = centred * scale
        d_standard = d_rows * weight
        projected = d_standard.mean(-1, keep_dims=True) + standard * (d_standard * standard).mean(-1, keep_dims=True)
        d_x = (d_standard - projected) * scale
        ones = ops.ones((1, rows.shape[0]), x.dtype)  # sums over rows as products: the CPU's reductions are serial
        d_weight, d_bias = ops.matmul(ones, d_rows * standard), ops.matmul(ones, d_rows)
        return d_x.reshape(x.shape), d_weight.reshape(dim), d_bias.reshape(dim)


class Attention(nn.Cell):
    """Multi-head self-attention, (N, T, D) -> (N, T, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(axis=-1)
        self.unstack = ops.Unstack(axis=0)  # indexing with [0], [1], [2] is 60 times slower on the CPU

    def construct(self, x: Tensor) -> Tensor:
        images, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.num_heads, dim // self.num_heads).transpose(2, 0, 3, 1, 4)
        q, k, v = self.unstack(qkv)  # each (N, heads, T, D / heads)
        attention = self.softmax(self.scores(q * self.scale, k))  # (N, heads, T, T)
        return self.proj(self.mix(attention, v).transpose(0, 2, 1, 3).reshape(images, tokens, dim))


class Mlp(nn.Cell):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int, gelu: str) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        self.act: Callable = _tanh_gelu if gelu == "tanh" else _exact_gelu

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _exact_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


def _tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + ops.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


class DropPath(nn.Cell):
    """Stochastic depth: drops a residual branch of whole images while training, keeping its expectation."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.dropout = nn.Dropout(p=rate)

    def construct(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.dropout(ops.ones((x.shape[0], 1, 1), x.dtype))


class Block(nn.Cell):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, gelu: str, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), gelu)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def blocks(depth: int, dim: int, num_heads: int, config: ModelConfig, drop_path: float = 0.0) -> nn.CellList:
    """A stack of blocks; stochastic depth rises linearly from 0 at the first to `drop_path` at the last."""
    rates = np.linspace(0, drop_path, depth)
    return nn.CellList([Block(dim, num_heads, config.mlp_ratio, config.gelu, float(rate)) for rate in rates])


class _Projection(nn.Cell):
    """Holds the patch projection under upstream's name: a convolution weight (D, 3, p, p)."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        fan_in = 3 * patch_size * patch_size
        weight = initializer(
            XavierUniform(), (embed_dim, fan_in), ms.float32
        ).init_data()  # Xavier on the (out, -1) view
        self.weight = Parameter(weight.reshape(embed_dim, 3, patch_size, patch_size), name="weight")
        bound = 1 / math.sqrt(fan_in)  # torch's default bias of a convolution, which upstream keeps
        self.bias = Parameter(initializer(Uniform(bound), (embed_dim,), ms.float32), name="bias")


class PatchEmbed(nn.Cell):
    """Projects patches, (N, T, p*p*3) in (row, column, channel) order -> (N, T, D).

    A matrix product on cut patches equals the stride-p convolution and can run on the visible patches alone.
    """

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.patch_values = 3 * patch_size * patch_size
        self.proj = _Projection(patch_size, embed_dim)
        self.matmul = ops.MatMul(transpose_b=True)
        self.add = ops.BiasAdd()

    def construct(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight.transpose(0, 2, 3, 1).reshape(self.embed_dim, self.patch_values)
        rows = self.matmul(patches.reshape(-1, self.patch_values), weight)
        return self.add(rows, self.proj.bias).reshape(patches.shape[:-1] + (self.embed_dim,))


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(N, 3, H, W) -> (N, L, p*p*3); a patch's values are ordered (row, column, channel)."""
    n, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(n, channels, rows, patch_size, columns, patch_size)
    return x.transpose(0, 2, 4, 3, 5, 1).reshape(n, rows * columns, patch_size * patch_size * channels)


class Encoder(nn.Cell):
    """Patch embedding, cls token, position embedding and blocks: what pre-training hands on.

    The MAE and the classifier inherit from it, so that their parameters keep upstream's unprefixed names.
    """

    def __init__(self, config: ModelConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        side = config.image_size // config.patch_size
        self.config = config
        self.patch_size = config.patch_size
        self.embed_dim = config.embed_dim
        self.patches = side * side
        self.cls_token = Parameter(initializer(Normal(0.02), (1, 1, config.embed_dim), ms.float32), name="cls_token")
        self.pos_embed = Parameter(
            Tensor(sincos_2d(config.embed_dim, (side, side))), name="pos_embed", requires_grad=False
        )
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.blocks = blocks(config.depth, config.embed_dim, config.num_heads, config, drop_path)

    def transform(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Patches (N, T, p*p*3) at position embeddings (N or 1, T, D) -> tokens (N, 1 + T, D) after the last block."""
        x = self.patch_embed(patches) + positions
        cls_token = self.cls_token + self.pos_embed[:, :1]
        x = ops.concat((ops.broadcast_to(cls_token, (x.shape[0], 1, self.embed_dim)), x), 1)
        for block in self.blocks:
            x = block(x)
        return x

    def transform_all(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> tokens (N, 1 + L, D) after the last block, nothing masked."""
        return self.transform(patchify(images, self.patch_size), self.pos_embed[:, 1:])


class VisionTransformer(Encoder):
    """Classifier on the encoder: mean of the patch tokens, `fc_norm`, linear head (upstream's `global_pool`)."""

    def __init__(self, config: ModelConfig, num_classes: int, *, drop_path: float = 0.0) -> None:
        super().__init__(config, drop_path=drop_path)
        self.fc_norm = LayerNorm(config.embed_dim)
        self.head = Linear(config.embed_dim, num_classes)
        self.head.weight.set_data(initializer(TruncatedNormal(2e-5), self.head.weight.shape, ms.float32))

    def construct(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) float32, normalised -> logits (N, classes)."""
        tokens = self.transform_all(images)
        return self.head(self.fc_norm(tokens[:, 1:].mean(1)))
