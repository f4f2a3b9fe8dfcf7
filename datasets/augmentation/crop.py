"""Random resized crop and horizontal flip, as functions of random numbers that were drawn before.

The numbers of a sample depend only on the seed, the epoch and the sample's place in the epoch's order. They do not
depend on ranks, workers or batches, or on the step at which a run was resumed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import simplejpeg

from datasets.augmentation.resample import resized_crop
from datasets.images.view import decode

TRIES = 10
RATIO = (3 / 4, 4 / 3)  # of width to height
DRAWS = 2 * TRIES + 3  # area and ratio of each try; left, top and flip
_BLOCK = 1024  # places whose numbers come from one generator


class Augmentation(NamedTuple):
    """How training images are cropped.

    `smallest_area` is the least share of the image's area that a crop keeps: 0.2 in pre-training (He et al. 2022, A.1),
    0.08 in linear probing and fine-tuning. If a drawn box does not fit into the image, torchvision draws again, at most
    ten times. With `clipped` the first box is cut to the image instead, as in upstream's linear probe, after BYOL.
    """

    smallest_area: float
    clipped: bool = False


def draws(start: int, stop: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return uniform numbers, (stop - start, DRAWS) float64 in [0, 1), for these places of the epoch's order."""
    first, last = start // _BLOCK, -(-stop // _BLOCK)
    blocks = [np.random.default_rng([seed, epoch, 1, n]).random((_BLOCK, DRAWS)) for n in range(first, last)]
    return np.concatenate([np.empty((0, DRAWS)), *blocks])[start - first * _BLOCK :][: stop - start]


def crop_box(width: int, height: int, drawn: np.ndarray, how: Augmentation) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a crop in pixels, from `drawn`, (DRAWS,) float64 in [0, 1).

    The same as torchvision's RandomResizedCrop.get_params: area and logarithm of the ratio are uniform. If none of ten
    boxes fits into the image, the crop is the largest box at the centre within the limits of the ratio.
    """
    *shapes, across, down, _ = drawn.tolist()
    low, high = (math.log(ratio) for ratio in RATIO)
    for n in range(TRIES):
        area = width * height * (how.smallest_area + (1 - how.smallest_area) * shapes[2 * n])
        ratio = math.exp(low + (high - low) * shapes[2 * n + 1])
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if how.clipped:
            wide, tall = min(wide, width), min(tall, height)
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(across * (width - wide + 1)), int(down * (height - tall + 1))
            return left, top, left + wide, top + tall
    wide, tall = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def augmented(content: np.ndarray, drawn: np.ndarray, how: Augmentation, out: np.ndarray, *, where: object) -> None:
    """Decode and crop an image, resize it with Pillow's bicubic filter, and mirror it with probability 0.5.

    Args:
        content: the bytes of an image file, uint8.
        drawn: (DRAWS,) float64 in [0, 1).
        out: (H, W, 3) uint8, contiguous; receives the result.
        where: name of the image, for errors.

    Raises:
        InputError: the content is no image.
    """
    pixels = rgbx(content, where=where)
    box = crop_box(pixels.shape[1], pixels.shape[0], drawn, how)
    resized_crop(pixels, box, out, flip=drawn[-1] < 0.5)


def rgbx(content: np.ndarray, *, where: object) -> np.ndarray:
    """Return the pixels of `datasets.images.view.decode`, (H, W, 4) uint8: red, green, blue and an unused channel.

    If libjpeg-turbo reads the file without a warning, it is called directly. The pixels are the same, because Pillow
    calls it too, but the interpreter lock is held for a shorter time.
    """
    try:
        return simplejpeg.decode_jpeg(content, colorspace="RGBX")
    except ValueError:  # another format, or a JPEG that Pillow may still know how to read
        return np.asarray(decode(content.tobytes(), where=where).convert("RGBX"))
