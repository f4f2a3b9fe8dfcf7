"""Vision transformer: the encoder, which the MAE shares, and the classifier.

Parameter names are facebookresearch/mae's and timm's state-dict keys, so weights convert by copying. N images, L
patches, T tokens, D channels.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, TruncatedNormal, Uniform, XavierUniform, initializer

from mae.config.sections import ComputeConfig, ModelConfig
from mae.device.context import DEFAULT_COMPUTE, compute_dtype
from mae.model.layers import Affine, LayerNorm, Linear, blocks
from mae.model.pos_embed import sincos_2d


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
    """Projection of patches, (N, T, p*p*3) in (row, column, channel) order -> (N, T, D).

    A matrix product on patches equals the convolution with stride p, and can be limited to the visible patches.
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
    """Patch embedding, class token, position embedding and blocks: the part of a MAE that fine-tuning reuses.

    The MAE and the classifier inherit from it, so their parameters keep upstream's names without a prefix.
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
        """Patches (N, T, p*p*3) with position embeddings (N or 1, T, D) -> tokens (N, 1 + T, D) after the last block.

        `keep` (N, depth, 2) float32 are factors on the branches of the blocks, for stochastic depth.
        """
        x = self.patch_embed(patches).astype(ms.float32) + positions
        cls_token = self.cls_token + self.pos_embed[:, :1]
        x = ops.concat((ops.broadcast_to(cls_token, (x.shape[0], 1, self.embed_dim)), x), 1)
        for number, block in enumerate(self.blocks):
            x = block(x) if keep is None else block(x, keep[:, number])
        return x

    def transform_all(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) -> tokens (N, 1 + L, D) after the last block, without a mask; `keep`: see transform."""
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
    """Classifier on the encoder. Its position embedding is trained, as in upstream's fine-tuning; the MAE's is fixed.

    The head's input is `fc_norm` of the patch tokens' mean if `config.pool` is mean. If it is cls, the input is the
    class token after `norm`, as in timm's and Hugging Face's ViT. With 0 classes there is no head, and the output are
    features.
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
        """Images (N, 3, H, W) float32, normalised -> logits (N, classes) float32; `keep`: see Encoder.transform."""
        return self.head(self.features(images, keep)).astype(ms.float32)

    def features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (N, 3, H, W) -> the head's input (N, D)."""
        tokens = self.transform_all(images, keep)
        if self.mean:
            return self.fc_norm(tokens[:, 1:].mean(1))
        return self.norm(tokens[:, :1].reshape(tokens.shape[0], -1))

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (N, 1 + L, D) of whole images after the final norm; only if `config.pool` is cls."""
        return self.norm(self.transform_all(images))
