"""Layers of the transformer blocks that encoder and decoder share.

Weights of linear layers are (out, in). N images, T tokens, D channels. Many gradients are written by hand, because
MindSpore's own operators for them are slow on a CPU.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import XavierUniform, initializer

from mae.config.sections import ModelConfig

# MindSpore 2.0 mistakes the type of `math` in a graph, so these are computed here. They are rounded to float32 at every
# step, as a graph rounds them.
ROOT_HALF = math.sqrt(0.5)
DENSITY = 1 / math.sqrt(2 * math.pi)
SLOPE = float(2 * np.sqrt(np.float32(2 / math.pi)))
# An NPU computes sigmoid(u) as 1 / (1 + exp(-u)) (CANN's impl/dynamic/sigmoid.py), and exp(88.8) overflows float32.
LOWEST = -88.0


class Linear(nn.Cell):
    """y = x W^T + b over the last axis, computed in `dtype`. W (out, in) float32 starts Xavier-uniform, b at 0."""

    def __init__(self, in_features: int, out_features: int, dtype: ms.Type) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.weight = Parameter(initializer(XavierUniform(), (out_features, in_features), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (out_features,), ms.float32), name="bias")
        self.affine = Affine()

    def construct(self, x: Tensor) -> Tensor:
        rows = x.astype(self.dtype).reshape(-1, self.in_features)
        y = self.affine(rows, self.weight.astype(self.dtype), self.bias.astype(self.dtype))
        return y.reshape(x.shape[:-1] + (self.out_features,))


class Affine(nn.Cell):
    """(R, in), (out, in), (out,) -> (R, out). The bias's gradient is a product with ones: the CPU's sum is serial."""

    def __init__(self) -> None:
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)
        self.add = ops.BiasAdd()
        self.matmul_to_rows = ops.MatMul()
        self.matmul_to_weight = ops.MatMul(transpose_a=True)

    def construct(self, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.add(self.matmul(rows, weight), bias)

    def bprop(self, rows: Tensor, weight: Tensor, _bias: Tensor, _out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        d_bias = self.matmul_to_rows(ops.ones((1, rows.shape[0]), dout.dtype), dout).reshape(-1)
        return self.matmul_to_rows(dout, weight), self.matmul_to_weight(dout, rows), d_bias


class LayerNorm(nn.Cell):
    """Layer normalisation over the last axis in float32, with upstream's parameter names."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = Parameter(initializer("ones", (dim,), ms.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (dim,), ms.float32), name="bias")
        self.norm = _CpuNorm(eps) if ms.get_context("device_target") == "CPU" else _FusedNorm(eps)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(x, self.weight, self.bias)


class _FusedNorm(nn.Cell):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.norm(x, weight, bias)[0]


class _CpuNorm(_FusedNorm):
    """The same forward kernel with a gradient made of plain operators.

    MindSpore's LayerNormGrad computes two powers per element on the CPU, which is a quarter of a small model's step.
    """

    def bprop(self, x: Tensor, weight: Tensor, _bias: Tensor, _out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        dim = x.shape[-1]
        rows, d_rows = x.reshape(-1, dim), dout.reshape(-1, dim)
        centred = rows - rows.mean(-1, keep_dims=True)
        scale = ops.rsqrt(ops.square(centred).mean(-1, keep_dims=True) + self.eps)
        standard = centred * scale
        d_standard = d_rows * weight
        projected = d_standard.mean(-1, keep_dims=True) + standard * (d_standard * standard).mean(-1, keep_dims=True)
        d_x = (d_standard - projected) * scale
        ones = ops.ones((1, rows.shape[0]), x.dtype)  # sums over rows as products, because the CPU's sums are serial
        d_weight, d_bias = ops.matmul(ones, d_rows * standard), ops.matmul(ones, d_rows)
        return d_x.reshape(x.shape), d_weight.reshape(dim), d_bias.reshape(dim)


class Attention(nn.Cell):
    """Multi-head self-attention, (N, T, D) -> (N, T, D)."""

    def __init__(self, dim: int, num_heads: int, dtype: ms.Type) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = Linear(dim, 3 * dim, dtype)
        self.proj = Linear(dim, dim, dtype)
        self.mix = Mix(dtype)
        self.unstack = ops.Unstack(axis=0)  # indexing with [0], [1], [2] is 60 times slower on the CPU

    def construct(self, x: Tensor) -> Tensor:
        images, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.num_heads, dim // self.num_heads).transpose(2, 0, 3, 1, 4)
        q, k, v = self.unstack(qkv)  # each (N, heads, T, D / heads)
        mixed, _ = self.mix(q * self.scale, k, v)
        return self.proj(mixed.transpose(0, 2, 1, 3).reshape(images, tokens, dim))


class Mix(nn.Cell):
    """softmax(q k^T) v and the softmax itself, computed in float32. q, k and v are (N, heads, T, D / heads) of `dtype`.

    The gradient of the softmax needs each row's sum of p * dp. It equals the sum of out * dout (Dao et al. 2022, B.4),
    which has D / heads terms instead of T.
    """

    def __init__(self, dtype: ms.Type) -> None:
        super().__init__()
        self.dtype = dtype
        self.softmax = ops.Softmax(axis=-1)
        self.matmul = ops.BatchMatMul()
        self.matmul_a = ops.BatchMatMul(transpose_a=True)
        self.matmul_b = ops.BatchMatMul(transpose_b=True)

    def construct(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        p = self.softmax(self.matmul_b(q, k).astype(ms.float32)).astype(self.dtype)  # (N, heads, T, T)
        return self.matmul(p, v), p

    def bprop(
        self, q: Tensor, k: Tensor, v: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        (mixed, p), d_mixed = out, dout[0]
        d_p = self.matmul_b(d_mixed, v).astype(ms.float32)
        # the mean times its count, because the CPU's sum is 50 times slower
        row = (mixed.astype(ms.float32) * d_mixed.astype(ms.float32)).mean(-1, keep_dims=True) * v.shape[-1]
        d_scores = (p.astype(ms.float32) * (d_p - row)).astype(self.dtype)
        return self.matmul(d_scores, k), self.matmul_a(d_scores, q), self.matmul_a(p, d_mixed)


class Mlp(nn.Cell):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int, gelu: str, dtype: ms.Type) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, dtype)
        self.fc2 = Linear(hidden, dim, dtype)
        self.act: nn.Cell = TanhGelu() if gelu == "tanh" else Gelu()

    def construct(self, x: Tensor) -> Tensor:
        y, _ = self.act(self.fc1(x))
        return self.fc2(y)


class Gelu(nn.Cell):
    """x * phi(x) and phi(x), where phi is the normal distribution function (Hendrycks & Gimpel 2016).

    phi is returned for the gradient, because its erf is the slowest kernel of a step on the CPU. Both are of x's type,
    and computed in float32, because the square of 256 overflows float16.
    """

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.astype(ms.float32)
        phi = 0.5 + 0.5 * ops.erf(wide * ROOT_HALF)
        return (wide * phi).astype(x.dtype), phi.astype(x.dtype)

    def bprop(self, x: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        wide, phi = x.astype(ms.float32), out[1].astype(ms.float32)
        density = ops.exp(ops.square(wide) * -0.5) * DENSITY
        return (dout[0] * (phi + wide * density).astype(x.dtype),)


class TanhGelu(nn.Cell):
    """The same with phi(x) approximated by (1 + tanh(u)) / 2, where u = sqrt(2 / pi) * (x + 0.044715 x^3).

    It is computed as sigmoid(2 u), because MindSpore's tanh on the CPU has an error of 1e-4.
    """

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.astype(ms.float32)
        phi = ops.sigmoid(ops.maximum(wide * (SLOPE + (SLOPE * 0.044715) * ops.square(wide)), LOWEST))
        return (wide * phi).astype(x.dtype), phi.astype(x.dtype)

    def bprop(self, x: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        wide, phi = x.astype(ms.float32), out[1].astype(ms.float32)
        d_phi = (phi - ops.square(phi)) * (SLOPE + (3 * SLOPE * 0.044715) * ops.square(wide))
        return (dout[0] * (phi + wide * d_phi).astype(x.dtype),)


class Block(nn.Cell):
    """Pre-norm transformer block. The tokens between blocks are float32."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, config: ModelConfig, dtype: ms.Type) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, config.layer_norm_eps)
        self.attn = Attention(dim, num_heads, dtype)
        self.norm2 = LayerNorm(dim, config.layer_norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), config.gelu, dtype)

    def construct(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (N, T, D) -> the same shape; `keep` (N, 2) float32 are factors on each image's two branches."""
        attended = self.attn(self.norm1(x)).astype(ms.float32)
        if keep is not None:
            attended = attended * keep[:, :1, None]
        x = x + attended
        hidden = self.mlp(self.norm2(x)).astype(ms.float32)
        if keep is not None:
            hidden = hidden * keep[:, 1:, None]
        return x + hidden


def blocks(
    depth: int,
    dim: int,
    num_heads: int,
    mlp_ratio: float,
    config: ModelConfig,
    *,
    dtype: ms.Type,
    recompute: bool,
) -> nn.CellList:
    """Return `depth` blocks."""
    stack = [Block(dim, num_heads, mlp_ratio, config, dtype) for _ in range(depth)]
    if recompute:
        for block in stack:
            block.recompute()
    return nn.CellList(stack)
