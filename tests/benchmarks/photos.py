"""JPEG photos of ordinary ImageNet size, cut at native resolution from samples of scikit-learn and scikit-image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375  # every second photo is portrait
MEAN_BYTES = 110_000
_QUALITIES = (80, 88, 92, 94, 95, 96, 97, 98, 99)


def photos(directory: Path, count: int, seed: int = 0) -> list[Path]:
    """Write `count` different crops, of 110 KB on average, as <number>.jpg."""
    rng = np.random.default_rng(seed)
    sources = _sources()
    directory.mkdir(parents=True, exist_ok=True)
    places = [
        (source, left, top, mirrored)
        for source in sources
        for left in range(source.width - WIDTH + 1)
        for top in range(source.height - HEIGHT + 1)
        for mirrored in (False, True)
    ]
    written, total = [], 0
    for number, place in enumerate(rng.choice(len(places), count, replace=False).tolist()):
        source, left, top, mirrored = places[place]
        crop = source.crop((left, top, left + WIDTH, top + HEIGHT))
        if mirrored:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if number % 2:
            crop = crop.transpose(Image.Transpose.ROTATE_90)
        wanted = MEAN_BYTES * (number + 1) - total
        data = min((_jpeg(crop, quality) for quality in _QUALITIES), key=lambda encoded: abs(len(encoded) - wanted))
        total += len(data)
        written.append(directory / f"{number:06d}.jpg")
        written[-1].write_bytes(data)
    return written


def _sources() -> list[Image.Image]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    arrays = [*load_sample_images().images, data.astronaut(), data.coffee(), data.rocket()]
    return [Image.fromarray(array) for array in arrays]


def _jpeg(image: Image.Image, quality: int) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return sink.getvalue()
