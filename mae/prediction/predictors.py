"""Models on single images: what a MAE reconstructs, which classes a classifier finds likeliest.

H, W are the model's image sides, p its patch size, L its number of patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from PIL import Image

from datasets.base.errors import InputError
from datasets.images import centre_view
from mae.config.sections import ModelConfig
from mae.masking import ids_from_noise
from mae.model.forward import Classify, Reconstruct, normalise_pixels
from mae.model.mae import MaskedAutoencoder
from mae.model.vit import VisionTransformer

MASK_GREY = 127
BEST = 5


class Reconstruction(NamedTuple):
    """Three pictures (H, W, 3) uint8 of one image and how far the prediction is from it."""

    original: np.ndarray
    masked: np.ndarray  # removed patches grey
    filled: np.ndarray  # removed patches predicted, the visible ones as they are
    mask_ratio: float
    loss: float
    true_patch_statistics: bool  # the removed patches' brightness and contrast come from the image itself


class Reconstructor:
    """A MAE ready to reconstruct images.

    A model trained on per-patch normalised pixels predicts no brightness and no contrast: they are put back from the
    image's own patches, the removed ones too, which `true_patch_statistics` says.
    """

    def __init__(self, model: MaskedAutoencoder, mask_ratio: float) -> None:
        self.config, self.mask_ratio = model.config, mask_ratio
        self.graph = _compiled(Reconstruct(model))

    def __call__(self, image: Image.Image, *, seed: int, digest: str) -> Reconstruction:
        """Reconstruct an image from its visible patches; the mask is a function of `seed` and the image's `digest`."""
        pixels, patch_size = view(image, self.config), self.config.patch_size
        target = to_patches(normalise_pixels(pixels, self.config), patch_size)
        noise = np.random.default_rng([seed, int(digest, 16)]).random((1, len(target)))
        try:
            ids_keep, ids_restore = ids_from_noise(noise, self.mask_ratio)
        except ValueError as fault:
            todo = "tell another one: `mae convert SRC DST --set mask_ratio=...`"
            raise InputError("mask_ratio", expected="a mask", found=str(fault), todo=todo) from None
        outputs = self.graph(Tensor(pixels[None]), Tensor(ids_keep), Tensor(ids_restore))
        pred, removed = (output.asnumpy()[0] for output in outputs)
        mean, spread = np.float32(0), np.float32(1)
        if self.config.norm_pix_loss:
            mean = target.mean(1, keepdims=True)
            spread = np.sqrt(target.var(1, ddof=1, keepdims=True) + 1e-6)
        error = (((target - mean) / spread - pred) ** 2).mean(1)
        mask = from_patches(np.repeat(removed[:, None], target.shape[1], axis=1), patch_size, self.config.grid) == 1
        predicted = to_pixels(from_patches(pred * spread + mean, patch_size, self.config.grid), self.config)
        return Reconstruction(
            original=pixels,
            masked=np.where(mask, np.full_like(pixels, MASK_GREY), pixels),
            filled=np.where(mask, predicted, pixels),
            mask_ratio=float(removed.mean()),
            loss=float((error * removed).sum() / removed.sum()),
            true_patch_statistics=self.config.norm_pix_loss,
        )


class Classifier:
    """A classifier ready to name classes; without names they are called by their numbers."""

    def __init__(self, model: VisionTransformer, classes: Sequence[str] | None) -> None:
        self.config, self.classes = model.config, classes
        self.graph = _compiled(Classify(model))

    def __call__(self, image: Image.Image) -> list[tuple[str, float]]:
        """The BEST likeliest classes of an image with their probabilities, the likeliest first."""
        logits = self.graph(Tensor(view(image, self.config)[None])).asnumpy()[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-logits, kind="stable")[:BEST]
        return [(self.classes[i] if self.classes else str(i), float(probabilities[i])) for i in best]


def _compiled(graph: nn.Cell) -> Callable[..., Any]:
    """The graph for inference, compiled in either mode of MindSpore: PyNative, the default, is ten times slower."""
    graph.set_train(False)
    return ms.jit(graph)


def view(image: Image.Image, config: ModelConfig) -> np.ndarray:
    """What a model sees of an image: uint8 (H, W, 3)."""
    return centre_view(image, config.image_shape, config.crop_pct)


def to_patches(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """(H, W, 3) -> (L, p*p*3), as `vit.patchify` orders them."""
    rows, columns = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
    grid = pixels.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * columns, -1)


def from_patches(patches: np.ndarray, patch_size: int, grid: tuple[int, int]) -> np.ndarray:
    """(L, p*p*3) on a grid of (rows, columns) -> (H, W, 3); the inverse of `to_patches`."""
    rows, columns = grid
    parts = patches.reshape(rows, columns, patch_size, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return parts.reshape(rows * patch_size, columns * patch_size, 3)


def to_pixels(normalised: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Pixels (H, W, 3) float32, normalised for the model -> uint8, clipped (a plain cast would wrap round)."""
    values = (normalised * np.array(config.pixel_std) + np.array(config.pixel_mean)) * 255
    return values.round().clip(0, 255).astype(np.uint8)
