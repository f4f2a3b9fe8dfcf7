"""Models on single images: a MAE reconstructs an image, a classifier ranks its classes.

H, W are the sides of the model's images, p its patch size, L its number of patches.
"""

from __future__ import annotations

from collections.abc import Callable
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
from mae.model.vit import Encoder, VisionTransformer

MASK_RATIO = 0.75  # of the published models, for a model whose card has none
MASK_GREY = 127
BEST = 5


class Reconstruction(NamedTuple):
    """The reconstruction of one image. The pictures are uint8 (H, W, 3)."""

    original: np.ndarray
    masked: np.ndarray  # removed patches are grey
    filled: np.ndarray  # removed patches are predicted, visible ones are the original's
    mask_ratio: float
    loss: float  # mean squared error of the removed patches, in the units of the training loss
    true_patch_statistics: bool  # the brightness and contrast of the removed patches come from the original


class Reconstructor:
    """Reconstructs images with a MAE.

    A model that was trained with `norm_pix_loss` predicts neither brightness nor contrast. They are taken from the
    original's patches, also from the removed ones, and `true_patch_statistics` is true.

    Raises:
        InputError: the model has no decoder.
    """

    def __init__(self, model: Encoder, where: object = "model") -> None:
        _check_type(model, MaskedAutoencoder, "a MAE with its decoder, to reconstruct images", where)
        self.config = model.config
        self.mask_ratio = getattr(getattr(model, "card", None), "mask_ratio", None) or MASK_RATIO
        self.graph = _compiled(Reconstruct(model))

    def __call__(self, image: Image.Image, *, seed: int, digest: str) -> Reconstruction:
        """Reconstruct an image from its visible patches; `seed` and the image's `digest` (hex) determine the mask."""
        pixels, patch_size, grid = _view(image, self.config), self.config.patch_size, self.config.grid
        target = to_patches(normalise_pixels(pixels, self.config), patch_size)
        noise = np.random.default_rng([seed, int(digest, 16)]).random((1, len(target)))
        try:
            ids_keep, ids_restore = ids_from_noise(noise, self.mask_ratio)
        except ValueError as fault:
            todo = "set another one: `mae convert SRC DST --set mask_ratio=...`"
            raise InputError("mask_ratio", expected="a mask", found=str(fault), todo=todo) from None
        outputs = self.graph(Tensor(pixels[None]), Tensor(ids_keep), Tensor(ids_restore))
        pred, removed = (output.asnumpy()[0] for output in outputs)
        mean, spread = np.float32(0), np.float32(1)
        if self.config.norm_pix_loss:
            mean = target.mean(1, keepdims=True)
            spread = np.sqrt(target.var(1, ddof=1, keepdims=True) + 1e-6)
        error = (((target - mean) / spread - pred) ** 2).mean(1)
        mask = from_patches(np.repeat(removed[:, None], target.shape[1], axis=1), patch_size, grid) == 1
        predicted = to_pixels(from_patches(pred * spread + mean, patch_size, grid), self.config)
        return Reconstruction(
            original=pixels,
            masked=np.where(mask, np.full_like(pixels, MASK_GREY), pixels),
            filled=np.where(mask, predicted, pixels),
            mask_ratio=float(removed.mean()),
            loss=float((error * removed).sum() / removed.sum()),
            true_patch_statistics=self.config.norm_pix_loss,
        )


class Classifier:
    """Classifies images. A class without a name is called by its number.

    Raises:
        InputError: the model has no head.
    """

    def __init__(self, model: Encoder, where: object = "model") -> None:
        _check_type(model, VisionTransformer, "a classifier", where)
        self.config, self.classes = model.config, getattr(getattr(model, "card", None), "labels", None)
        self.graph = _compiled(Classify(model))

    def __call__(self, image: Image.Image) -> list[tuple[str, float]]:
        """Return the BEST most probable classes of an image and their probabilities, the most probable first."""
        logits = self.graph(Tensor(_view(image, self.config)[None])).asnumpy()[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-logits, kind="stable")[:BEST]
        return [(self.classes[i] if self.classes else str(i), float(probabilities[i])) for i in best]


def to_patches(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """Return the patches (L, p*p*3) of pixels (H, W, 3), in the order of `mae.model.vit.patchify`."""
    rows, columns = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
    grid = pixels.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * columns, -1)


def from_patches(patches: np.ndarray, patch_size: int, grid: tuple[int, int]) -> np.ndarray:
    """Return the pixels (H, W, 3) of patches (L, p*p*3) on a grid of (rows, columns). Inverts `to_patches`."""
    rows, columns = grid
    parts = patches.reshape(rows, columns, patch_size, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return parts.reshape(rows * patch_size, columns * patch_size, 3)


def to_pixels(normalised: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Return uint8 pixels (H, W, 3) of pixels normalised for the model, clipped to 0..255."""
    values = (normalised * np.array(config.pixel_std) + np.array(config.pixel_mean)) * 255
    return values.round().clip(0, 255).astype(np.uint8)


def _view(image: Image.Image, config: ModelConfig) -> np.ndarray:
    """Return the part of an image that the model gets, uint8 (H, W, 3)."""
    return centre_view(image, config.image_shape, config.crop_pct)


def _compiled(graph: nn.Cell) -> Callable[..., Any]:
    """Compile a graph for inference. MindSpore's default mode, PyNative, would be ten times slower."""
    graph.set_train(False)

    def run(*inputs: Tensor) -> Any:  # before 2.7, MindSpore compiles functions only
        return graph(*inputs)

    return ms.jit(run)


def _check_type(model: Encoder, kind: type, expected: str, where: object) -> None:
    headless = isinstance(model, VisionTransformer) and isinstance(model.head, nn.Identity)
    if not isinstance(model, kind) or headless:
        found = "an encoder without head or decoder" if headless else f"a {type(model).__name__}"
        raise InputError(where, expected=expected, found=found, todo="give another model")
