"""The fast bicubic resize against Pillow's, bit for bit."""

import numpy as np
import pytest
from PIL import Image

from datasets.augmentation.resample import resized_crop


def noise(width, height):
    return np.random.default_rng([width, height]).integers(0, 256, (height, width, 4), np.uint8)


def pillows(pixels, box, size, flip):
    """Crop, then resize in width, then in height: what `resize` does in one call unless it turns the passes round."""
    crop = Image.fromarray(np.ascontiguousarray(pixels[..., :3])).crop(box)
    wide = crop.resize((size[0], crop.height), Image.Resampling.BICUBIC)
    out = wide.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else out)


def ours(pixels, box, size, flip):
    out = np.full((size[1], size[0], 3), 77, np.uint8)
    resized_crop(pixels, box, out, flip=flip)
    return out


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("name", "width", "height", "box", "size"),
    [
        ("a photo, down", 500, 375, (30, 20, 430, 320), (224, 224)),
        ("a photo, up", 500, 375, (100, 100, 250, 240), (224, 224)),
        ("the whole image", 333, 251, (0, 0, 333, 251), (224, 224)),
        ("the last rows and columns", 333, 251, (133, 101, 333, 251), (224, 224)),
        ("nothing to resize", 300, 300, (10, 20, 234, 244), (224, 224)),
        ("width as it is", 300, 300, (0, 0, 224, 300), (224, 224)),
        ("height as it is", 300, 300, (0, 0, 300, 224), (224, 224)),
        ("one pixel", 5, 4, (2, 3, 3, 4), (16, 16)),
        ("one row", 90, 40, (5, 7, 70, 8), (32, 32)),
        ("to one pixel", 90, 40, (5, 7, 70, 38), (1, 1)),
        ("not square", 200, 100, (20, 10, 180, 90), (64, 32)),
        ("shrunk 40 times", 1600, 1300, (0, 0, 1600, 1300), (40, 30)),
    ],
)
def test_named_crops_equal_pillows(name, width, height, box, size, flip):
    pixels = noise(width, height)
    np.testing.assert_array_equal(ours(pixels, box, size, flip), pillows(pixels, box, size, flip), name)


def test_two_hundred_random_crops_equal_pillows():
    rng = np.random.default_rng(1)
    for _ in range(200):
        width, height = rng.integers(8, 500, 2).tolist()
        left, top = int(rng.integers(width)), int(rng.integers(height))
        box = (left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1)
        size = tuple(rng.integers(1, 260, 2).tolist())
        pixels = noise(width, height)
        np.testing.assert_array_equal(
            ours(pixels, box, size, False), pillows(pixels, box, size, False), f"{box} {size}"
        )


def test_a_crop_that_is_not_much_taller_equals_one_call_of_pillows_resize():
    pixels, box = noise(500, 375), (30, 20, 430, 320)
    crop = Image.fromarray(np.ascontiguousarray(pixels[..., :3])).crop(box)
    np.testing.assert_array_equal(
        ours(pixels, box, (224, 224), False), crop.resize((224, 224), Image.Resampling.BICUBIC)
    )


@pytest.mark.parametrize("value", [0, 255])
def test_overshoot_is_clipped(value):
    """Black and white stripes, whose bicubic overshoots both ends, and plain colours, which stay what they are."""
    plain = np.full((30, 40, 4), value, np.uint8)
    assert (ours(plain, (0, 0, 40, 30), (64, 64), False) == value).all()
    stripes = np.zeros((40, 40, 4), np.uint8)
    stripes[:, ::8] = stripes[:, 1::8] = stripes[:, 2::8] = stripes[:, 3::8] = 255
    found = ours(stripes, (0, 0, 40, 40), (100, 100), False)
    np.testing.assert_array_equal(found, pillows(stripes, (0, 0, 40, 40), (100, 100), False))
    assert found.min() == 0
    assert found.max() == 255
