"""Vision transformer: the one definition of encoder blocks that the MAE and the classifier share.

Parameter names are facebookresearch/mae's and timm's state-dict keys, so weights convert by copying. Weights of linear
layers are (out, in). N images, L patches, D channels, T tokens.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, TruncatedNormal, Uniform, XavierUniform, initializer

from mae.config.sections import ComputeConfig, ModelConfig
from mae.device.context import DEFAULT_COMPUTE, compute_dtype
from mae.model.pos_embed import sincos_2d


class Linear(nn.Cell):
    """y = x W^T + b over the last axis, in `dtype`; W is (out, in) float32, Xavier-uniform, b zero (as upstream)."""

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
    """Layer normalisation over the last axis with upstream's names, float32."""

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
    """The same forward kernel with a gradient of plain operators.

    MindSpore's LayerNormGrad takes two powers per element on the CPU, a quarter of a small model's step.
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
        ones = ops.ones((1, rows.shape[0]), x.dtype)  # sums over rows as products: the CPU's reductions are serial
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
    """softmax(q k^T) v and the softmax itself, float32 inside; q, k and v are (N, heads, T, D / heads) of `dtype`.

    The gradient of the softmax needs each row's sum of p * dp, which equals that of out * dout (Dao et al. 2022, B.4):
    D / heads values instead of T.
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
        # a mean times its count: the CPU's sum is 50 times slower
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
    """x * phi(x) and phi(x), the normal distribution function (Hendrycks & Gimpel 2016).

    phi is handed to the gradient; the erf in it is the slowest kernel of a step on the CPU.
    """

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        phi = 0.5 + 0.5 * ops.erf(x * math.sqrt(0.5))
        return x * phi, phi

    def bprop(self, x: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        density = ops.exp(ops.square(x) * -0.5) * (1 / math.sqrt(2 * math.pi))
        return (dout[0] * (out[1] + x * density),)


class TanhGelu(nn.Cell):
    """The same with phi(x) approximated by (1 + tanh(u)) / 2, u = sqrt(2 / pi) * (x + 0.044715 x^3).

    It is computed as sigmoid(2 u): MindSpore's tanh on the CPU is wrong by 1e-4.
    """

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        slope = 2 * math.sqrt(2 / math.pi)
        phi = ops.sigmoid(x * (slope + (slope * 0.044715) * ops.square(x)))
        return x * phi, phi

    def bprop(self, x: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]) -> tuple[Tensor]:
        slope, phi = 2 * math.sqrt(2 / math.pi), out[1]
        d_phi = (phi - ops.square(phi)) * (slope + (3 * slope * 0.044715) * ops.square(x))
        return (dout[0] * (phi + x * d_phi),)


class Block(nn.Cell):
    """Pre-norm transformer block; between blocks tokens are float32."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, config: ModelConfig, dtype: ms.Type) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, config.layer_norm_eps)
        self.attn = Attention(dim, num_heads, dtype)
        self.norm2 = LayerNorm(dim, config.layer_norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), config.gelu, dtype)

    def construct(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (N, T, D) -> the same shape; `keep` (N, 2) float32 are factors on the two branches of each image."""
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
    """A stack of blocks."""
    stack = [Block(dim, num_heads, mlp_ratio, config, dtype) for _ in range(depth)]
    if recompute:
        for block in stack:
            block.recompute()
    return nn.CellList(stack)


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

    def __init__(self, patch_size: int, embed_dim: int, dtype: ms.Type) -> None:
        super().__init__()
        self.embed_dim, self.dtype = embed_dim, dtype
        self.patch_values = 3 * patch_size * patch_size
        self.proj = _Projection(patch_size, embed_dim)
        self.affine = Affine()

    def construct(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight.transpose(0, 2, 3, 1).reshape(self.embed_dim, self.patch_values)
        rows = patches.astype(self.dtype).reshape(-1, self.patch_values)
        y = self.affine(rows, weight.astype(self.dtype), self.proj.bias.astype(self.dtype))
        return y.reshape(patches.shape[:-1] + (self.embed_dim,))


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

    def __init__(self, config: ModelConfig, compute: ComputeConfig) -> None:
        super().__init__()
        dtype = compute_dtype(compute)
        self.config = config
        self.patch_size = config.patch_size
        self.embed_dim = config.embed_dim
        self.patches = config.grid[0] * config.grid[1]
        self.cls_token = Parameter(initializer(Normal(0.02), (1, 1, config.embed_dim), ms.float32), name="cls_token")
        self.pos_embed = Parameter(
            Tensor(sincos_2d(config.embed_dim, config.grid)), name="pos_embed", requires_grad=False
        )
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim, dtype)
        self.blocks = blocks(
            config.depth,
            config.embed_dim,
            config.num_heads,
            config.mlp_ratio,
            config,
            dtype=dtype,
            recompute=compute.recompute,
        )

    def transform(self, patches: Tensor, positions: Tensor, keep: Tensor | None = None) -> Tensor:
        """Patches (N, T, p*p*3) at position embeddings (N or 1, T, D) -> tokens (N, 1 + T, D) after the last block.

        `keep` (N, depth, 2) float32 are factors on the branches of the blocks: stochastic depth, drawn on the host.
        """
        x = self.patch_embed(patches).astype(ms.float32) + positions
        cls_token = self.cls_token + self.pos_embed[:, :1]
        x = ops.concat((ops.broadcast_to(cls_token, (x.shape[0], 1, self.embed_dim)), x), 1)
        for number, block in enumerate(self.blocks):
            x = block(x) if keep is None else block(x, keep[:, number])
        return x

    def transform_all(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) -> tokens (N, 1 + L, D) after the last block, nothing masked; `keep` as of transform."""
        return self.transform(patchify(images, self.patch_size), self.pos_embed[:, 1:], keep)


class BatchNorm(nn.Cell):
    """Batch normalisation of features (N, D) without scale and shift, under torch's names (upstream's linear probe)."""

    def __init__(self, dim: int, eps: float = 1e-6, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.running_mean = Parameter(Tensor(np.zeros(dim, np.float32)), name="running_mean", requires_grad=False)
        self.running_var = Parameter(Tensor(np.ones(dim, np.float32)), name="running_var", requires_grad=False)
        self.num_batches_tracked = Parameter(Tensor(0, ms.int64), name="num_batches_tracked", requires_grad=False)

    def construct(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.running_mean) / ops.sqrt(self.running_var + self.eps)
        mean = x.mean(0)
        centred = x - mean
        variance = ops.square(centred).mean(0)
        unbiased = variance * (x.shape[0] / (x.shape[0] - 1))  # of the running variance only, as torch keeps it
        y = centred / ops.sqrt(variance + self.eps)
        y = ops.depend(y, ops.assign_add(self.running_mean, self.momentum * (mean - self.running_mean)))
        y = ops.depend(y, ops.assign_add(self.running_var, self.momentum * (unbiased - self.running_var)))
        return ops.depend(y, ops.assign_add(self.num_batches_tracked, Tensor(1, ms.int64)))


class VisionTransformer(Encoder):
    """Classifier on the encoder. Unlike the MAE's, its position embedding is trained (upstream's fine-tuning).

    `config.pool` mean: the mean of the patch tokens through `fc_norm`; cls: the cls token after `norm`, as in timm's
    and Hugging Face's ViT. Without classes there is no head: features only.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        drop_path: float = 0.0,
        compute: ComputeConfig = DEFAULT_COMPUTE,
    ) -> None:
        super().__init__(config, compute)
        self.drop_path = drop_path
        self.pos_embed.requires_grad = True
        self.mean = config.pool == "mean"
        if self.mean:
            self.fc_norm = LayerNorm(config.embed_dim, config.layer_norm_eps)
        else:
            self.norm = LayerNorm(config.embed_dim, config.layer_norm_eps)
        if not num_classes:
            self.head = nn.Identity()
            return
        linear = Linear(config.embed_dim, num_classes, compute_dtype(compute))
        batch_norm = config.head == "batch_norm"
        linear.weight.set_data(initializer(TruncatedNormal(0.01 if batch_norm else 2e-5), linear.weight.shape))
        self.head = nn.SequentialCell(BatchNorm(config.embed_dim), linear) if batch_norm else linear

    def construct(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) float32, normalised -> logits (N, classes) float32; `keep` as of Encoder.transform."""
        return self.head(self.features(images, keep)).astype(ms.float32)

    def features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) -> what the head sees, (N, D)."""
        tokens = self.transform_all(images, keep)
        if self.mean:
            return self.fc_norm(tokens[:, 1:].mean(1))
        return self.norm(tokens[:, :1].reshape(tokens.shape[0], -1))

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (N, 1 + L, D) of whole images after the final norm; only where `config.pool` is cls."""
        return self.norm(self.transform_all(images))
