"""Pixels of the published evaluation, against its rules written out with plain Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from datasets.base.errors import InputError
from datasets.images.view import centre_view, decode

EXIF_ORIENTATION = 0x0112


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng([seed, width, height]).integers(0, 256, (height, width, 3), np.uint8))


def published(image, size, crop):
    """torchvision's Resize(size, BICUBIC) and CenterCrop(crop), as their documentation and source state them."""
    width, height = image.size
    short, long = sorted((width, height))
    resized = (size, int(size * long / short)) if width <= height else (int(size * long / short), size)
    if image.size != resized:
        image = image.resize(resized, Image.Resampling.BICUBIC)
    top = int(round((image.size[1] - crop) / 2.0))  # noqa: RUF046 (as upstream writes it)
    left = int(round((image.size[0] - crop) / 2.0))  # noqa: RUF046
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@pytest.mark.parametrize(
    ("name", "width", "height"),
    [
        ("landscape", 500, 375),
        ("portrait", 375, 500),
        ("square", 300, 300),
        ("already of that size", 256, 256),
        ("odd margin", 257, 256),
        ("margin of 3", 259, 256),
        ("margin of 1 in height", 256, 341),
        ("tiny", 7, 5),
        ("one pixel high", 40, 1),
        ("MindSpore's resize differs", 293, 687),
        ("very wide", 1999, 301),
    ],
)
@pytest.mark.parametrize(("size", "crop", "crop_pct"), [(256, 224, 0.875), (384, 384, 1.0), (37, 33, 0.875)])
def test_named_sizes_give_the_published_pixels(name, width, height, size, crop, crop_pct):
    image = noise(width, height)
    np.testing.assert_array_equal(centre_view(image, (crop, crop), crop_pct), published(image, size, crop), name)


def test_fifty_random_sizes_give_the_published_pixels():
    rng = np.random.default_rng(1)
    for width, height in rng.integers(20, 700, (50, 2)).tolist():
        image = noise(width, height)
        np.testing.assert_array_equal(centre_view(image, (224, 224), 0.875), published(image, 256, 224))


def test_a_wide_model_sees_the_whole_picture():
    image = noise(100, 90)
    whole = np.asarray(image.resize((64, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(centre_view(image, (32, 64), 1.0), whole)


def jpeg(image, **options):
    sink = io.BytesIO()
    image.save(sink, "JPEG", **options)
    return sink.getvalue()


def test_orientation_is_not_applied_and_every_mode_becomes_rgb(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    sideways = jpeg(noise(30, 20), exif=exif)
    assert decode(sideways, where="x").size == (30, 20)
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        source = noise(9, 8).convert("L").convert("I").convert(mode) if mode == "I;16" else noise(9, 8).convert(mode)
        path = tmp_path / f"{mode.replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}"
        source.save(path)
        assert decode(path, where=path).mode == "RGB", mode


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text", b"no image", "found no image format"),
        ("empty", b"", "found no image format"),
        ("truncated", jpeg(noise(90, 90))[:900], "truncated"),
        ("truncated header", jpeg(noise(90, 90))[:100], "expected an image"),
    ],
)
def test_what_is_no_image_is_named(name, content, message):
    with pytest.raises(InputError, match=message) as error:
        decode(content, where="photo.jpg")
    assert str(error.value).startswith("photo.jpg: expected an image"), name
    assert "0x" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        decode(tmp_path / "none.png", where=tmp_path / "none.png")


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "ramp.png", where="ramp"))[..., 0], ramp >> 8)


def test_floats_have_no_white_level(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match="no defined white level"):
        decode(tmp_path / "x.tif", where="x.tif")
