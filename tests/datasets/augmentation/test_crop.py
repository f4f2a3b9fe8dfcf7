"""Random crops: where they lie, and that a sample's pixels are what its numbers say."""

import io
import math
import random

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ks_2samp

from datasets.augmentation.crop import DRAWS, Augmentation, augmented, crop_box, draws, rgbx
from datasets.base.errors import InputError
from datasets.images.view import decode


def get_params(rng, width, height, scale, ratio=(3 / 4, 4 / 3)):
    """torchvision's RandomResizedCrop.get_params as its documentation and source state it: left, top, width, height."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            return left, top, w, h
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


def boxes(width, height, how, count):
    drawn = draws(0, count, seed=5, epoch=0)
    found = np.array([crop_box(width, height, row, how) for row in drawn])
    found[:, 2:] -= found[:, :2]
    return found


@pytest.mark.parametrize(
    ("name", "width", "height", "smallest_area"),
    [
        ("photo, pre-training", 500, 375, 0.2),
        ("photo, linear probe", 375, 500, 0.08),
        ("square, most tries fail at large areas", 256, 256, 0.9),
        ("strip, often none fits", 400, 130, 0.2),
    ],
)
def test_boxes_are_distributed_as_torchvisions(name, width, height, smallest_area):
    """Kolmogorov-Smirnov on 20,000 boxes each; p < 1e-4 would come up once in 10,000 runs, and the seeds are fixed."""
    rng = random.Random(1)
    theirs = np.array([get_params(rng, width, height, (smallest_area, 1.0)) for _ in range(20_000)])
    ours = boxes(width, height, Augmentation(smallest_area), 20_000)
    for number, side in enumerate(("left", "top", "width", "height")):
        assert ks_2samp(ours[:, number], theirs[:, number]).pvalue > 1e-4, (name, side)
    for label, of in (("area", lambda b: b[:, 2] * b[:, 3]), ("ratio", lambda b: b[:, 2] / b[:, 3])):
        assert ks_2samp(of(ours), of(theirs)).pvalue > 1e-4, (name, label)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= (width, height)).all()


@pytest.mark.parametrize(
    ("name", "width", "height", "box"),
    [
        ("wide: ratio 4/3 in the centre", 1000, 100, (433, 0, 566, 100)),
        ("tall: ratio 3/4 in the centre", 100, 1000, (0, 433, 100, 566)),
        ("one pixel", 1, 1, (0, 0, 1, 1)),
    ],
)
def test_where_no_try_fits_the_centre_is_taken(name, width, height, box):
    drawn = np.full(DRAWS, 0.999)  # the whole area in an extreme ratio, ten times
    assert crop_box(width, height, drawn, Augmentation(0.2)) == box


def test_the_clipped_crop_takes_its_first_box_cut_down_to_the_image():
    drawn = np.full(DRAWS, 0.999)
    drawn[1] = 0.5  # ratio 1 of an image of 400 x 100: a box of 200 x 200, of which 100 rows are there
    left, top, right, bottom = crop_box(400, 100, drawn, Augmentation(0.08, clipped=True))
    assert (right - left, top, bottom) == (200, 0, 100)
    found = boxes(500, 375, Augmentation(0.08, clipped=True), 20_000)
    rng = random.Random(2)
    for number, label in ((2, "width"), (3, "height")):
        expected = []
        for _ in range(20_000):
            area, ratio = 500 * 375 * rng.uniform(0.08, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            expected.append(min((500, 375)[number - 2], round(math.sqrt(area * ratio ** (1, -1)[number - 2]))))
        assert ks_2samp(found[:, number], expected).pvalue > 1e-4, label


def test_what_is_drawn_depends_on_seed_epoch_and_place_alone():
    whole = draws(0, 3000, seed=1, epoch=2)
    assert whole.shape == (3000, DRAWS)
    for start, stop in ((0, 1), (5, 5), (1020, 1030), (1024, 2048), (2999, 3000)):
        np.testing.assert_array_equal(draws(start, stop, seed=1, epoch=2), whole[start:stop])
    assert len(np.unique(whole)) == whole.size
    for other in (draws(0, 3000, seed=2, epoch=2), draws(0, 3000, seed=1, epoch=3)):
        assert (other != whole).all()


def photo(mode="RGB", width=90, height=70):
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).resize((width, height)).convert(mode)


def saved(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return np.frombuffer(sink.getvalue(), np.uint8)


CONTENTS = {
    **{f"JPEG 4:{s}": saved(photo(), "JPEG", subsampling=f"4:{s}") for s in ("4:4", "2:2", "2:0")},
    "JPEG 4:2:0 of odd size": saved(photo(width=91, height=67), "JPEG", subsampling="4:2:0", quality=40),
    "progressive JPEG": saved(photo(), "JPEG", progressive=True),
    "grey JPEG": saved(photo("L"), "JPEG"),
    "PNG": saved(photo(), "PNG"),
    "grey PNG": saved(photo("L"), "PNG"),
    "PNG with alpha": saved(photo("RGBA"), "PNG"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_pixels_are_those_that_pillow_decodes(name):
    content = CONTENTS[name]
    found = rgbx(content, where=name)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found[..., :3], decode(content.tobytes(), where=name))


@pytest.mark.parametrize("last", [0.25, 0.75])
def test_an_image_is_cropped_resized_and_mirrored_as_drawn(last):
    content = CONTENTS["JPEG 4:2:0"]
    drawn = draws(7, 8, seed=0, epoch=0)[0]
    drawn[-1] = last
    image = decode(content.tobytes(), where="x")
    box = crop_box(*image.size, drawn, Augmentation(0.2))
    crop = image.crop(box)
    expected = crop.resize((32, crop.height), Image.Resampling.BICUBIC).resize((32, 32), Image.Resampling.BICUBIC)
    out = np.empty((32, 32, 3), np.uint8)
    augmented(content, drawn, Augmentation(0.2), out, where="x")
    np.testing.assert_array_equal(out, np.asarray(expected)[:, ::-1] if last < 0.5 else expected)


def test_what_is_no_image_is_named():
    with pytest.raises(InputError, match="record 7: expected an image, found no image format"):
        rgbx(np.frombuffer(b"no image", np.uint8), where="record 7")
