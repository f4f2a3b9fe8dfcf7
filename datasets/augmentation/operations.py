"""RandAugment (Cubuk et al. 2020) as in timm: two operations, drawn from 15, on an 8-bit image.

The formulas are those of timm's "increasing" operations, whose effect grows with the level. Pillow computes the pixels,
as in timm. Affine operations interpolate with the bicubic filter, as the published fine-tuning does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LAYERS = 2
APPLIED = 0.5  # probability of each layer
LEVELS = 10  # levels are drawn around the magnitude and clipped to 0 and this
FORM = "rand-mM-mstdS-inc1 with a whole number M of 0 to 10 and a number S of 0 to 100"

Fill = tuple[int, int, int]


class RandAugment(NamedTuple):
    """How strongly images are changed."""

    magnitude: int  # of LEVELS
    noise: float  # standard deviation of an operation's level around the magnitude
    fill: Fill  # RGB colour of pixels that an operation moves into the image


def rand_augment(spec: str, *, mean: Sequence[float]) -> RandAugment:
    """Parse timm's text `rand-mM-mstdS-inc1`; the fill is `mean`, RGB between 0 and 1.

    Other parts of timm's syntax (number of layers, weights, mmax, inc0) are not supported.

    Raises:
        ValueError: the text has another form, or a number is out of range.
    """
    found = re.fullmatch(r"rand-m(\d{1,2})-mstd(\d{1,3}(?:\.\d+)?)-inc1", spec, re.ASCII)
    if found is None or int(found[1]) > LEVELS or float(found[2]) > 100:
        raise ValueError(f"rand_augment must be {FORM}, got {spec!r}")
    red, green, blue = (round(255 * share) for share in mean)
    return RandAugment(int(found[1]), float(found[2]), (red, green, blue))


def rand_augmented(pixels: np.ndarray, rng: np.random.Generator, how: RandAugment) -> None:
    """Apply random operations to `pixels`, (H, W, 3) uint8, in place.

    Each of the two layers draws one of all operations with equal probability, and is skipped with probability 0.5.
    """
    image = None
    for _ in range(LAYERS):
        name, applied, negated = NAMES[rng.integers(len(NAMES))], rng.random() < APPLIED, rng.random() < 0.5
        level = how.magnitude + how.noise * rng.standard_normal()
        if applied:
            image = Image.fromarray(pixels) if image is None else image
            image = operated(image, name, level=level, negated=negated, fill=how.fill)
    if image is not None:
        pixels[:] = np.asarray(image)


def operated(image: Image.Image, name: str, *, level: float, negated: bool, fill: Fill) -> Image.Image:
    """Return an RGB image after one operation.

    Args:
        image: RGB.
        name: of the operation, as in timm.
        level: strength; clipped to 0 and LEVELS.
        negated: the other direction (left, not right; darker, not brighter), if the operation has two.
        fill: RGB colour of pixels that move into the image.
    """
    share = max(0.0, min(level, LEVELS)) / LEVELS
    signed = -share if negated else share
    if name in _PLAIN:
        return _PLAIN[name](image)
    if name in _LEVELLED:
        return _LEVELLED[name](image, share)
    if name in _ENHANCED:
        return _ENHANCED[name](image).enhance(max(0.1, 1.0 + signed * 0.9))
    if name == "Rotate":
        return image.rotate(signed * 30.0, Image.Resampling.BICUBIC, fillcolor=fill)
    number, reach = _AFFINE[name]
    matrix = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    matrix[number] = signed * reach * {2: image.width, 5: image.height}.get(number, 1)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _posterized(image: Image.Image, share: float) -> Image.Image:
    """Return black for 0 bits, as Pillow did before 13.0, which raises an error."""
    bits = 4 - int(share * 4)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarized(image: Image.Image, share: float) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(share * 256))


def _added(image: Image.Image, share: float) -> Image.Image:
    more = int(share * 110)
    return image.point([value + more if value < 128 else value for value in range(256)] * 3)


_PLAIN: dict[str, Callable[[Image.Image], Image.Image]] = {
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
}
_LEVELLED = {"PosterizeIncreasing": _posterized, "SolarizeIncreasing": _solarized, "SolarizeAdd": _added}
_ENHANCED: dict[str, Callable[[Image.Image], ImageEnhance._Enhance]] = {
    "ColorIncreasing": ImageEnhance.Color,
    "ContrastIncreasing": ImageEnhance.Contrast,
    "BrightnessIncreasing": ImageEnhance.Brightness,
    "SharpnessIncreasing": ImageEnhance.Sharpness,
}
_AFFINE = {"ShearX": (1, 0.3), "ShearY": (3, 0.3), "TranslateXRel": (2, 0.45), "TranslateYRel": (5, 0.45)}
NAMES = (*_PLAIN, "Rotate", *_LEVELLED, *_ENHANCED, *_AFFINE)
