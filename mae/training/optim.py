"""AdamW and LARS with the published recipes' parameter groups, and the loss scale, which can skip an update.

An optimiser is called as (gradients, lr, applied). `lr` () float32 is the learning rate. `applied` () float32 is 1, or
0 for an update that must change nothing; its gradients are then zero. `state` lists the parameters that resuming needs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

EPS = 1e-8
LARGEST_FLOAT = float(np.finfo(np.float32).max)


def layer_id(name: str, depth: int) -> int:
    """Return a parameter's layer for layer-wise decay: 0 for embeddings, i + 1 for block i, depth + 1 for the rest."""
    if name.startswith(("cls_token", "pos_embed", "patch_embed")):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def layer_scales(names: Sequence[str], *, depth: int, layer_decay: float) -> list[float]:
    """Return the factor on the learning rate by parameter: layer_decay ** (layers after it) (Clark et al. 2020)."""
    return [layer_decay ** (depth + 1 - layer_id(name, depth)) for name in names]


def decays(parameters: Sequence[Parameter], weight_decay: float, exempt: Collection[str] = ()) -> list[float]:
    """Return the weight decay per parameter: 0 for 1-D parameters, biases and the names in `exempt`.

    Upstream's pre-training has no further exemptions: cls_token and mask_token have three axes, so they decay. Its
    fine-tuning also exempts cls_token and pos_embed (timm's `no_weight_decay`).
    """
    return [0.0 if p.ndim <= 1 or p.name.endswith(".bias") or p.name in exempt else weight_decay for p in parameters]


class AdamW(nn.Cell):
    """Decoupled weight decay (Loshchilov & Hutter 2019) as torch computes it, on MindSpore's fused Adam kernel.

    Args:
        parameters: the trained parameters.
        betas: decay rates of the two moments.
        weight_decay: per update, times the learning rate, for the parameters that `decays` names.
        exempt: names of further parameters without decay.
        scales: factor on the learning rate per parameter, in order (layer decay); none: 1.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        betas: tuple[float, float],
        weight_decay: float,
        exempt: Collection[str] = (),
        scales: Sequence[float] | None = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.params = ms.ParameterTuple(parameters)
        self.moment1 = self.params.clone("adam_m", init="zeros")
        self.moment2 = self.params.clone("adam_v", init="zeros")
        self.updates = Parameter(Tensor(0, ms.int32), name="adam_updates", requires_grad=False)
        self.state = [*self.moment1, *self.moment2, self.updates]
        self.beta1, self.beta2 = betas
        self.corrections = Tensor(_corrections(betas))
        self.decays = tuple(decays(parameters, weight_decay, exempt))
        self.scales = tuple(scales) if scales is not None else (1.0,) * len(self.params)
        self.adam = ops.Adam()
        self.unstack = ops.Unstack()
        self.map = ops.HyperMap()  # a loop in `construct` takes twice as long to compile

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor, applied: Tensor) -> Tensor:
        """Update all parameters. If `applied` is 0, the betas are 1 and the rate is 0, so nothing changes."""
        done = ops.assign_add(self.updates, applied.astype(ms.int32))
        row = ops.minimum(done, self.corrections.shape[0]) - 1
        rate, eps = self.unstack(ops.gather(self.corrections, ops.maximum(row, 0), 0))
        lr = lr * applied
        beta1, beta2 = self.beta1 * applied + (1 - applied), self.beta2 * applied + (1 - applied)
        step = ops.partial(_step, self.adam, lr, rate, beta1, beta2, eps)
        moments = (self.moment1, self.moment2)
        return ops.depend(done, self.map(step, self.params, *moments, gradients, self.decays, self.scales))


def _step(
    adam: ops.Primitive,
    lr: Tensor,
    rate: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    eps: Tensor,
    p: Parameter,
    m: Parameter,
    v: Parameter,
    g: Tensor,
    decay: float,
    scale: float,
) -> Tensor:
    """Update one parameter."""
    if decay:
        g = ops.depend(g, ops.assign(p, p * (1 - lr * scale * decay)))
    return adam(p, m, v, 0.0, 0.0, lr * rate * scale, beta1, beta2, eps, g)


def _corrections(betas: tuple[float, float]) -> np.ndarray:
    """Return (T, 2) float32: factor on the rate, and eps, at update t. Both are constant from update T on.

    They are computed in float64 from the float32 betas that the kernel uses. The kernel adds eps to sqrt(v) before the
    bias correction and torch after it, which the changed eps makes equal.
    """
    beta1, beta2 = (float(np.float32(beta)) for beta in betas)
    slower = max(beta1, beta2)
    last = math.ceil(math.log(2**-26) / math.log(slower)) if slower > 0 else 1
    t = np.arange(1, last + 1)
    root = np.sqrt(1 - beta2**t)
    return np.stack([root / (1 - beta1**t), EPS * root], axis=1).astype(np.float32)


class LARS(nn.Cell):
    """Layer-wise adaptive rate scaling (You et al. 2017) as upstream's linear probe computes it.

    A weight's gradient, including decay, is scaled to `trust` times the weight's norm. 1-D parameters have neither
    decay nor scaling. Momentum is applied to the result, before the learning rate.
    """

    def __init__(
        self, parameters: Sequence[Parameter], *, momentum: float, trust: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(auto_prefix=False)
        self.params = ms.ParameterTuple(parameters)
        self.velocities = self.params.clone("lars_v", init="zeros")
        self.state = list(self.velocities)
        self.momentum, self.trust, self.weight_decay = momentum, trust, weight_decay

    def construct(self, gradients: tuple[Tensor, ...], lr: Tensor, applied: Tensor) -> Tensor:
        """Update all parameters."""
        done = lr
        kept = self.momentum * applied + (1 - applied)
        for p, velocity, g in zip(self.params, self.velocities, gradients):
            if p.ndim > 1:
                g = g + self.weight_decay * p
                g = g * self.trust_ratio(p, g)
            step = velocity * kept + g * applied
            done = ops.depend(done, ops.assign(velocity, step))
            done = ops.depend(done, ops.assign(p, p - lr * applied * step))
        return done

    def trust_ratio(self, p: Tensor, g: Tensor) -> Tensor:
        """Return trust * |p| / |g|, or 1 if either norm is 0."""
        norm_p, norm_g = ops.sqrt(ops.square(p).sum()), ops.sqrt(ops.square(g).sum())
        usable = (norm_p * norm_g > 0).astype(ms.float32)
        return usable * self.trust * norm_p / (norm_g + (1 - usable)) + (1 - usable)


class LossScale(nn.Cell):
    """Decides in the graph, from loss and gradient norm, whether an update is applied, and scales the next loss.

    float16 gradients lose small values, so the loss is multiplied by 2^16 before they are computed. If that overflows,
    the update is skipped and counted, and the scale is halved. After 2,000 good updates the scale is doubled
    (Micikevicius et al. 2018, with the numbers of torch's GradScaler). A loss that is not finite itself, or gradients
    that are not finite at scale 1, halt training: no further update is applied, and `halted` counts the updates since.
    A device that saturates reports saturation instead. If it still does so at scale 1, training halts as well.

    Args:
        dynamic: scale the loss, for float16; otherwise the scale is always 1.
    """

    FIRST, LARGEST, INTERVAL = 2.0**16, 2.0**24, 2000

    def __init__(self, *, dynamic: bool) -> None:
        super().__init__(auto_prefix=False)
        self.dynamic = dynamic
        first = self.FIRST if dynamic else 1.0
        self.scale = Parameter(Tensor(first, ms.float32), name="loss_scale", requires_grad=False)
        self.good = Parameter(Tensor(0.0, ms.float32), name="loss_scale_good_updates", requires_grad=False)
        self.overflows = Parameter(Tensor(0.0, ms.float32), name="loss_scale_overflows", requires_grad=False)
        self.halted = Parameter(Tensor(0.0, ms.float32), name="halted_updates", requires_grad=False)
        self.state = [self.scale, self.good, self.overflows] if dynamic else []

    def construct(self, loss: Tensor, norm: Tensor, saturated: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decide about one update. All tensors are () float32.

        Args:
            loss: without the scale.
            norm: of the gradients, without the scale.
            saturated: not 0 if the device saturated.

        Returns:
            `applied`, and the new values of `scale`, `overflows` and `halted`. Read them here: MindSpore 2.0 gives the
            old value of a parameter that is read after its assignment.
        """
        finite_loss = _finite(loss)
        fits = _finite(norm) * finite_loss * (saturated == 0).astype(ms.float32)
        too_large = finite_loss * (1 - fits) * (self.scale > 1).astype(ms.float32)
        halted = self.halted + ops.maximum(1 - fits - too_large, ops.minimum(self.halted, 1.0))
        running = (halted == 0).astype(ms.float32)
        applied, overflow = fits * running, too_large * running
        scale, overflows = self.scale + 0.0, self.overflows + overflow
        if self.dynamic:
            good = (self.good + applied) * (1 - overflow)
            grow = (good >= self.INTERVAL).astype(ms.float32)
            scale = ops.minimum(self.scale * (1 + grow) * (1 - 0.5 * overflow), self.LARGEST)
            applied = ops.depend(applied, ops.assign(self.good, good * (1 - grow)))
            applied = ops.depend(applied, ops.assign(self.scale, scale))
            applied = ops.depend(applied, ops.assign(self.overflows, overflows))
        return ops.depend(applied, ops.assign(self.halted, halted)), scale, overflows, halted


def _finite(number: Tensor) -> Tensor:
    """Return 1.0 for a finite number, else 0.0. A 910A has no kernel for IsFinite."""
    return (ops.abs(number) <= LARGEST_FLOAT).astype(ms.float32)
