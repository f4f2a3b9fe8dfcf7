"""Losses on uint8 images, as cells of the device graph."""

from __future__ import annotations

from mindspore import Tensor, ops

from mae.model.forward import OnImages
from mae.model.vit import VisionTransformer


class PretrainLoss(OnImages):
    """Loss of a MAE on uint8 images."""

    def construct(self, images: Tensor, ids_keep: Tensor, ids_restore: Tensor) -> Tensor:
        return self.model(self.normalise(images), ids_keep, ids_restore)


class ClassifyLoss(OnImages):
    """Cross entropy of a classifier on uint8 images, with label smoothing, and mixed images if the batch has a map."""

    def __init__(self, model: VisionTransformer, label_smoothing: float) -> None:
        super().__init__(model)
        self.label_smoothing = label_smoothing
        self.drop_path = model.drop_path
        self.reverse = ops.ReverseV2(axis=[0])

    def construct(self, images: Tensor, labels: Tensor, *drawn: Tensor) -> Tensor:
        """Images (N, H, W, 3) uint8, labels (N,) int32, and the recipe's random numbers -> mean loss ().

        `drawn` has, if the recipe uses them, the factors of `task.branches` (N, depth, 2) and the map of
        `mixup.keep_map` (H, W), both float32. An image is mixed with the one at the opposite place of the batch, and
        its label in the same proportion as its pixels.
        """
        pixels = self.normalise(images)
        branches = None
        if self.drop_path:
            branches = drawn[0]
            drawn = drawn[1:]
        if drawn:
            pixels = pixels * drawn[0] + self.reverse(pixels) * (1 - drawn[0])
        log_probabilities = ops.log_softmax(self.model(pixels, branches), -1)
        true = ops.one_hot(labels, log_probabilities.shape[1], 1.0 - self.label_smoothing, 0.0)
        target = true + self.label_smoothing / log_probabilities.shape[1]
        if drawn:
            share = drawn[0].mean()
            target = target * share + self.reverse(target) * (1 - share)
        return -(target * log_probabilities).sum(-1).mean()
