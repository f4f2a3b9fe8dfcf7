"""AdamW as torch computes it, on MindSpore's fused Adam kernel, with the recipes' parameter groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

EPS = 1e-8


def layer_id(name: str, depth: int) -> int:
    """Layer of a parameter for layer-wise decay: embeddings 0, block i is i + 1, everything behind is depth + 1."""
    if name.startswith(("cls_token", "pos_embed", "patch_embed")):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


class AdamW(nn.Cell):
    """Decoupled weight decay (Loshchilov & Hutter 2019); biases, norms and other 1-D parameters do not decay.

    Args:
        parameters: what is trained.
        betas: decay rates of the two moments.
        weight_decay: per update, times the learning rate.
        scales: factor on the learning rate per parameter, in order (layer decay); none means 1.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        betas: tuple[float, float],
        weight_decay: float,
        scales: Sequence[float] | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.params = ms.ParameterTuple(parameters)
        self.moment1 = self.params.clone("adam_m", init="zeros")
        self.moment2 = self.params.clone("adam_v", init="zeros")
        self.beta1, self.beta2 = betas
        self.decays = tuple(weight_decay if p.ndim > 1 else 0.0 for p in parameters)
        self.scales = tuple(scales) if scales is not None else (1.0,) * len(self.params)
        self.adam = ops.Adam()

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor, powers: Tensor, eps: Tensor) -> Tensor:
        """Update all parameters. `powers` (2,) float32 is beta^t; `eps` comes from `step_inputs`."""
        power1, power2 = powers[0:1].reshape(()), powers[1:2].reshape(())
        done = lr
        for p, m, v, g, decay, scale in zip(
            self.params, self.moment1, self.moment2, gradients, self.decays, self.scales
        ):
            if decay:
                done = ops.depend(done, ops.assign(p, p * (1 - lr * scale * decay)))
            done = ops.depend(done, self.adam(p, m, v, power1, power2, lr * scale, self.beta1, self.beta2, eps, g))
        return done

    def step_inputs(self, lr: float, update: int) -> tuple[Tensor, Tensor, Tensor]:
        """lr, powers and eps for update number `update` (from 1).

        The kernel adds eps to sqrt(v) before the bias correction and torch after it, hence the factor.
        """
        power1, power2 = self.beta1**update, self.beta2**update
        eps = EPS * math.sqrt(1 - power2)
        return Tensor(lr, ms.float32), Tensor([power1, power2], ms.float32), Tensor(eps, ms.float32)
