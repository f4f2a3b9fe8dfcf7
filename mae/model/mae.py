"""The masked autoencoder (He et al. 2022): encode the visible patches, decode all, compare the removed ones."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from mae.config.sections import ComputeConfig, ModelConfig
from mae.device.context import DEFAULT_COMPUTE, compute_dtype, seed_initialisers
from mae.model.layers import LayerNorm, Linear, blocks
from mae.model.pos_embed import sincos_2d
from mae.model.vit import Encoder, patchify


class Unshuffle(nn.Cell):
    """Puts the visible tokens back in their places, and a mask token in all others.

    The gradient is written by hand. Token i's place is ids_keep[i], so the gradient is a gather as well. Automatic
    differentiation would emit a scatter-add, which is slow on a 910A and not deterministic on every device.
    """

    def construct(self, visible: Tensor, mask_token: Tensor, ids_keep: Tensor, ids_restore: Tensor) -> Tensor:  # noqa: ARG002 (bprop needs ids_keep)
        """(N, len_keep, D), (1, 1, D), (N, len_keep) int32, (N, L) int32 -> (N, L, D)."""
        n, len_keep, dim = visible.shape
        removed = ops.broadcast_to(mask_token, (n, ids_restore.shape[1] - len_keep, dim))
        return ops.gather(ops.concat((visible, removed), 1), ids_restore, 1, 1)

    def bprop(
        self, _visible: Tensor, _mask_token: Tensor, ids_keep: Tensor, ids_restore: Tensor, _out: Tensor, dout: Tensor
    ) -> tuple[Tensor, ...]:
        d_visible = ops.gather(dout, ids_keep, 1, 1)
        d_mask_token = dout.sum((0, 1), keepdims=True) - d_visible.sum((0, 1), keepdims=True)
        return d_visible, d_mask_token, ops.zeros_like(ids_keep), ops.zeros_like(ids_restore)


class MaskedAutoencoder(Encoder):
    """MAE with upstream's state-dict keys. Images are (N, 3, H, W) float32, normalised by the config's pixel values."""

    def __init__(self, config: ModelConfig, *, compute: ComputeConfig = DEFAULT_COMPUTE) -> None:
        super().__init__(config, compute)
        dtype = ms.float32 if compute.decoder_float32 else compute_dtype(compute)
        dim = config.decoder_embed_dim
        self.norm_pix_loss = config.norm_pix_loss
        self.norm = LayerNorm(config.embed_dim, config.layer_norm_eps)
        self.decoder_embed = Linear(config.embed_dim, dim, dtype)
        self.mask_token = Parameter(initializer(Normal(0.02), (1, 1, dim), ms.float32), name="mask_token")
        self.decoder_pos_embed = Parameter(
            Tensor(sincos_2d(dim, config.grid)), name="decoder_pos_embed", requires_grad=False
        )
        self.unshuffle = Unshuffle()
        self.decoder_blocks = blocks(
            config.decoder_depth,
            dim,
            config.decoder_num_heads,
            config.decoder_mlp_ratio or config.mlp_ratio,
            config,
            dtype=dtype,
            recompute=compute.recompute,
        )
        self.decoder_norm = LayerNorm(dim, config.layer_norm_eps)
        self.decoder_pred = Linear(dim, 3 * config.patch_size**2, dtype)

    def construct(self, images: Tensor, ids_keep: Tensor, ids_restore: Tensor) -> Tensor:
        """Mean squared error over the removed patches, a scalar."""
        patches = patchify(images, self.patch_size)
        pred = self.decode(self.encode_visible(patches, ids_keep), ids_keep, ids_restore)
        removed = self.removed(ids_keep, ids_restore)
        error = ops.square(pred - self.target(patches)).mean(-1)  # (N, L)
        return (error * removed).sum(-1).mean() / (
            self.patches - ids_keep.shape[1]
        )  # every image has the same number of removed patches

    def reconstruct(self, images: Tensor, ids_keep: Tensor, ids_restore: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted patches (N, L, p*p*3), normalised per patch if norm_pix_loss is set, and the mask (N, L)."""
        patches = patchify(images, self.patch_size)
        pred = self.decode(self.encode_visible(patches, ids_keep), ids_keep, ids_restore)
        return pred, self.removed(ids_keep, ids_restore)

    def encode(self, images: Tensor) -> Tensor:
        """Tokens (N, 1 + L, D) of whole images after the final norm."""
        return self.norm(self.transform_all(images))

    def encode_visible(self, patches: Tensor, ids_keep: Tensor) -> Tensor:
        """(N, L, p*p*3) -> (N, 1 + len_keep, D): the encoder sees the visible patches only."""
        positions = ops.gather(self.pos_embed[:, 1:].reshape(self.patches, self.embed_dim), ids_keep, 0)
        return self.norm(self.transform(ops.gather(patches, ids_keep, 1, 1), positions))

    def decode(self, tokens: Tensor, ids_keep: Tensor, ids_restore: Tensor) -> Tensor:
        """(N, 1 + len_keep, D) -> predicted patches (N, L, p*p*3)."""
        x = self.decoder_embed(tokens).astype(ms.float32)
        patches = self.unshuffle(x[:, 1:], self.mask_token, ids_keep, ids_restore)
        x = ops.concat((x[:, :1], patches), 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x)[:, 1:]).astype(ms.float32)

    def target(self, patches: Tensor) -> Tensor:
        """The decoder's target; norm_pix_loss divides by the unbiased variance, as torch's `var` does."""
        if not self.norm_pix_loss:
            return patches
        mean = patches.mean(-1, keep_dims=True)
        centred = patches - mean
        variance = ops.square(centred).sum(-1, keepdims=True) / (patches.shape[-1] - 1)
        return centred / ops.sqrt(variance + 1e-6)

    def removed(self, ids_keep: Tensor, ids_restore: Tensor) -> Tensor:
        """(N, L) float32, 1 for a removed patch: the visible patches come first in the shuffled order."""
        return (ids_restore >= ids_keep.shape[1]).astype(ms.float32)


def seeded_mae(config: ModelConfig, seed: int) -> MaskedAutoencoder:
    """Return a MAE with the random weights that `seed` gives."""
    seed_initialisers(seed)
    return MaskedAutoencoder(config)
