"""Photos of ordinary ImageNet size: 500 x 375 or 375 x 500 pixels, about 110 KB of JPEG on average, all different.

They are crops at native resolution, mirrored and turned by quarters, of the sample photos that scikit-learn and
scikit-image ship: a temple, a flower, a cup of coffee, a portrait, a rocket, a retina, a street of galaxies, a stained
tissue and a motorcycle, so smooth and busy ones. ImageNet's training files have 108 KB on average.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

LONG, SHORT = 500, 375
QUALITY = 97  # of which these crops have 110 KB on average, half of them with full and half with halved colour


def photos(directory: Path, count: int, seed: int) -> list[Path]:
    """Write `count` photos as <directory>/<number>.jpg; the same seed gives the same files."""
    chance, sources = random.Random(seed), list(_sources())
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        source = sources[number % len(sources)]
        left, top = (chance.randint(0, extent - side) for extent, side in zip(source.size, (LONG, SHORT), strict=True))
        crop = source.crop((left, top, left + LONG, top + SHORT))
        turn = chance.choice([None, *Image.Transpose])
        image = crop if turn is None else crop.transpose(turn)
        path = directory / f"{number:06d}.jpg"
        comment = f"{seed} {number}".encode()  # the same crop twice is still another file
        image.save(path, "JPEG", quality=QUALITY, subsampling=2 * (number // len(sources) % 2), comment=comment)
        paths.append(path)
    return paths


def _sources() -> Iterator[Image.Image]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    shipped = [data.coffee(), data.astronaut(), data.rocket(), data.retina(), data.hubble_deep_field()]
    shipped += [data.immunohistochemistry(), data.stereo_motorcycle()[0]]
    for array in [*load_sample_images().images, *shipped]:
        image = Image.fromarray(np.asarray(array)).convert("RGB")
        yield image if image.width >= LONG and image.height >= SHORT else image.transpose(Image.Transpose.ROTATE_90)
