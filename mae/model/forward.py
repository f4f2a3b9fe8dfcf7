"""Forward passes on uint8 images: pixels are normalised inside the graph, then the model runs."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mae.config.sections import ModelConfig
from mae.model.mae import MaskedAutoencoder
from mae.model.vit import VisionTransformer


def normalise_pixels(pixels: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Pixels (..., 3) between 0 and 255 -> float32, minus the model's pixel_mean, divided by its pixel_std."""
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


class OnImages(nn.Cell):
    """Base of the cells that run a model on uint8 images. Its parameters keep their names."""

    def __init__(self, model: MaskedAutoencoder | VisionTransformer) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.normalise = Normalise(model.config)


class Classify(OnImages):
    """Logits (N, classes) of uint8 images (N, H, W, 3)."""

    def construct(self, images: Tensor) -> Tensor:
        return self.model(self.normalise(images))


class Reconstruct(OnImages):
    """Predicted patches (N, L, p*p*3) and mask (N, L) of uint8 images (N, H, W, 3)."""

    def construct(self, images: Tensor, ids_keep: Tensor, ids_restore: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.reconstruct(self.normalise(images), ids_keep, ids_restore)


class Encode(OnImages):
    """uint8 images (N, H, W, 3) -> features (N, D): the class token, or the patches' mean if `pool` is mean."""

    def __init__(self, model: MaskedAutoencoder | VisionTransformer, pool: str) -> None:
        super().__init__(model)
        self.mean = pool == "mean"

    def construct(self, images: Tensor) -> Tensor:
        tokens = self.model.encode(self.normalise(images))
        if self.mean:
            return tokens[:, 1:].mean(1)
        return tokens[:, :1].reshape(tokens.shape[0], -1)
