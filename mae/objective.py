"""What the device graph computes per step: normalised pixels, a loss, its gradients over all ranks, one update."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from .config import ModelConfig
from .model import MaskedAutoencoder
from .optim import AdamW
from .vit import VisionTransformer


def normalise_pixels(pixels: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Pixels (..., 3) between 0 and 255 -> float32, less the model's pixel mean, over its pixel standard deviation."""
    shift, scale = (np.array(v, np.float32) * 255 for v in (config.pixel_mean, config.pixel_std))
    return (pixels - shift) / scale


class Normalise(nn.Cell):
    """`normalise_pixels` in the graph: uint8 (N, H, W, 3) -> float32 (N, 3, H, W)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.shift = Tensor(np.array(config.pixel_mean, np.float32) * 255)
        self.scale = Tensor(1 / (np.array(config.pixel_std, np.float32) * 255))

    def construct(self, images: Tensor) -> Tensor:
        return ((images.astype(ms.float32) - self.shift) * self.scale).transpose(0, 3, 1, 2)


class PretrainLoss(nn.Cell):
    """Loss of a MAE on uint8 images."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.normalise = Normalise(model.config)

    def construct(self, images: Tensor, ids_keep: Tensor, ids_restore: Tensor) -> Tensor:
        return self.model(self.normalise(images), ids_keep, ids_restore)


class ClassifyLoss(nn.Cell):
    """Cross entropy of a classifier on uint8 images, labels smoothed."""

    def __init__(self, model: VisionTransformer, label_smoothing: float) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.normalise = Normalise(model.config)
        self.label_smoothing = label_smoothing

    def construct(self, images: Tensor, labels: Tensor) -> Tensor:
        log_probabilities = ops.log_softmax(self.model(self.normalise(images)), -1)
        true = ops.one_hot(labels, log_probabilities.shape[1], 1.0 - self.label_smoothing, 0.0)
        target = true + self.label_smoothing / log_probabilities.shape[1]
        return -(target * log_probabilities).sum(-1).mean()


class MeanOverRanks(nn.Cell):
    """Average a loss and its gradients over all ranks in one all-reduce of one flat tensor."""

    def __init__(self, parameters: Sequence[Parameter], ranks: int) -> None:
        super().__init__()
        self.ranks = ranks
        self.shapes = [p.shape for p in parameters]
        self.sizes = [p.size for p in parameters] + [1]
        self.all_reduce = ops.AllReduce()

    def construct(self, loss: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        flat = [g.reshape(-1) for g in gradients]
        total = self.all_reduce(ops.concat(flat + [loss.reshape(1)])) / self.ranks
        parts = ops.split(total, self.sizes)
        return parts[-1].reshape(()), tuple([part.reshape(shape) for part, shape in zip(parts[:-1], self.shapes)])


class Update(nn.Cell):
    """One optimiser update from one batch per rank and what `Accumulate` has gathered before."""

    def __init__(self, loss: nn.Cell, optimizer: AdamW, *, ranks: int, accum_iter: int) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = ms.value_and_grad(loss, None, optimizer.params)
        self.optimizer = optimizer
        self.ranks, self.accum_iter = ranks, accum_iter
        if ranks > 1:
            self.mean_over_ranks = MeanOverRanks(optimizer.params, ranks)
        if accum_iter > 1:
            self.sums = optimizer.params.clone("accumulated", init="zeros")

    def construct(self, lr: Tensor, powers: Tensor, eps: Tensor, *batch: Tensor) -> Tensor:
        """Returns the mean loss of this batch over the ranks."""
        loss, gradients = self.gradients(*batch)
        if self.accum_iter > 1:
            gradients = tuple([(s + g) / self.accum_iter for s, g in zip(self.sums, gradients)])
        if self.ranks > 1:
            loss, gradients = self.mean_over_ranks(loss, gradients)
        loss = ops.depend(loss, self.optimizer(gradients, lr, powers, eps))
        if self.accum_iter > 1:
            for s, g in zip(self.sums, gradients):
                loss = ops.depend(loss, ops.assign(s, ops.zeros_like(g)))
        return loss


class Accumulate(nn.Cell):
    """Add one batch's gradients to the sums of an `Update`."""

    def __init__(self, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = update.gradients
        self.sums = update.sums

    def construct(self, *batch: Tensor) -> Tensor:
        """Returns this rank's loss of the batch."""
        loss, gradients = self.gradients(*batch)
        for s, g in zip(self.sums, gradients):
            loss = ops.depend(loss, ops.assign_add(s, g))
        return loss


class Classify(nn.Cell):
    """Logits (N, classes) of uint8 images (N, H, W, 3)."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.normalise = Normalise(model.config)

    def construct(self, images: Tensor) -> Tensor:
        return self.model(self.normalise(images))


class Reconstruct(nn.Cell):
    """Predicted patches (N, L, p*p*3) and mask (N, L) of uint8 images (N, H, W, 3)."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.normalise = Normalise(model.config)

    def construct(self, images: Tensor, ids_keep: Tensor, ids_restore: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.reconstruct(self.normalise(images), ids_keep, ids_restore)
