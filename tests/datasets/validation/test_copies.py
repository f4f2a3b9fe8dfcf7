"""Equal files and similar pictures against a plain search."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from datasets.images.inspect import look_of
from datasets.validation.copies import find_copies
from tests.datasets.conftest import encode


def plain_search(content, is_val, looks, distance):
    """(leak, duplicate, near) by comparing everything with everything."""
    count = len(content)
    leak, duplicate, near = ([-1] * count for _ in range(3))
    order = sorted(range(count), key=lambda n: (not is_val[n], n))
    for n in range(count):
        same = [other for other in range(count) if content[other] == content[n]]
        if not is_val[n]:
            leak[n] = next((other for other in same if is_val[other]), -1)
        if leak[n] < 0 and (first := next(other for other in same if is_val[other] == is_val[n])) != n:
            duplicate[n] = first
    seen = [n for n in order if leak[n] < 0 and duplicate[n] < 0]
    for place, n in enumerate(seen):
        ones = bin(int(looks[n])).count("1")
        if 8 <= ones <= 56:
            near[n] = next((m for m in seen[:place] if bin(int(looks[n]) ^ int(looks[m])).count("1") <= distance), -1)
    return leak, duplicate, near


@pytest.mark.parametrize("distance", [0, 1, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_against_a_plain_search(distance, seed):
    chance = np.random.default_rng(seed)
    content = chance.integers(0, 60, 300).astype(np.int32)
    looks = chance.integers(0, 2**63, 40).astype(np.uint64)[chance.integers(0, 40, 300)]
    for _ in range(3):
        looks ^= np.where(
            chance.random(300) < 0.5, np.uint64(1) << chance.integers(0, 64, 300).astype(np.uint64), np.uint64(0)
        )
    looks[:5] = 0
    is_val = chance.random(300) < 0.3
    found = find_copies(content, is_val, looks, distance=distance)
    assert tuple(column.tolist() for column in found) == plain_search(content, is_val, looks, distance)
    assert (found.near >= 0).any() or distance < 3


def test_nothing_to_compare():
    found = find_copies(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(0, np.uint64), distance=3)
    assert [len(column) for column in found] == [0, 0, 0]


def test_a_look_outlives_size_and_quality_and_tells_pictures_apart():
    photos = [Image.fromarray(array) for array in load_sample_images().images]
    boxes = [(left, top, left + 200, top + 150) for left in range(0, 440, 110) for top in range(0, 277, 130)]
    crops = [photo.crop(box) for photo in photos for box in boxes]
    looks = [look_of(crop) for crop in crops]
    for crop, look in zip(crops, looks, strict=True):
        other = Image.open(io.BytesIO(encode(crop.resize((150, 112)), "JPEG", quality=50)))
        assert bin(look ^ look_of(other)).count("1") <= 8
    different = [bin(a ^ b).count("1") for i, a in enumerate(looks) for b in looks[:i]]
    assert np.median(different) > 15
