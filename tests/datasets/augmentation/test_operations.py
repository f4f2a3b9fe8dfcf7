"""RandAugment and random erasing: the pixels of timm's operations, what is drawn how often, and for whom.

timm_operations.tsv beside this file has the digests of what timm's own auto_augment.py makes of the images below.
"""

import hashlib
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest, chisquare, ks_2samp, norm

from datasets.augmentation import operations as module
from datasets.augmentation.erasing import Erasing, box, erase
from datasets.augmentation.operations import NAMES, operated, rand_augment, rand_augmented

TABLE = Path(__file__).with_name("timm_operations.tsv")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124, 116, 104)  # 255 * MEAN, rounded
SPEC = "rand-m9-mstd0.5-inc1"


def pictures():
    """Images by the name that the table has for them, of whole numbers, so that no library's rounding is in them."""
    rows, columns = np.mgrid[:48, :40]
    ramp = np.stack([rows * 5, columns * 6, (rows + columns) * 2 + 40], 2).astype(np.uint8)
    blocks = np.random.default_rng(0).integers(0, 256, (7, 8, 3), np.uint8).repeat(9, 0).repeat(8, 1)
    return {
        "noise 33 x 47": np.random.default_rng(1).integers(0, 256, (47, 33, 3), np.uint8),
        "ramp 40 x 48": ramp,
        "blocks 64 x 63": blocks,
        "dim blocks 64 x 63": blocks // 3 + 30,
    }


ROWS = [line.split("\t") for line in TABLE.read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_gives_timms_pixels(name):
    images, rows = pictures(), [row for row in ROWS if row[0] == name]
    assert len(rows) >= 4
    wrong = []
    for _, level, direction, picture, expected in rows:
        image = Image.fromarray(images[picture])
        found = operated(image, name, level=float(level), negated=direction == "negated", fill=FILL)
        assert (found.mode, found.size) == ("RGB", image.size)
        if hashlib.sha256(np.asarray(found).tobytes()).hexdigest()[:16] != expected:
            wrong.append((level, direction, picture))
    assert not wrong


def test_the_table_has_timms_operations_and_no_others():
    assert list(dict.fromkeys(row[0] for row in ROWS)) == list(NAMES)
    assert len({row[4] for row in ROWS}) > len(ROWS) / 2, "the operations differ"


@pytest.mark.parametrize(
    ("spec", "magnitude", "noise"),
    [(SPEC, 9, 0.5), ("rand-m0-mstd0-inc1", 0, 0.0), ("rand-m10-mstd100-inc1", 10, 100.0)],
)
def test_a_spec_says_how_much(spec, magnitude, noise):
    assert rand_augment(spec, mean=MEAN) == (magnitude, noise, FILL)
    assert rand_augment(spec, mean=(0.5, 0.5, 0.5)).fill == (128, 128, 128)  # 127.5 to even, as timm's round


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "rand",
        "rand-m9",
        "rand-m9-mstd0.5",
        "rand-m9-mstd0.5-inc0",
        "rand-m9-n3-mstd0.5-inc1",
        "rand-m11-mstd0.5-inc1",
        "rand-m9-mstd101-inc1",
        "rand-m9-mstd-0.5-inc1",
        "rand-m9.5-mstd0.5-inc1",
        "rand-mstd0.5-m9-inc1",
        f"{SPEC}\n",
        "augmix-m5-w4-d2",
        "RAND-m9-mstd0.5-inc1",
    ],
)
def test_another_spec_is_refused(spec):
    with pytest.raises(ValueError, match="rand_augment must be rand-mM-mstdS-inc1"):
        rand_augment(spec, mean=MEAN)


@pytest.fixture(scope="module")
def calls():
    """Operations, levels and directions of 20,000 images; the operations themselves are left out."""
    found, now = [], []

    def noted(image, name, *, level, negated, fill):
        now.append((name, level, negated, fill))
        return image

    pixels, how = np.zeros((2, 2, 3), np.uint8), rand_augment(SPEC, mean=MEAN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "operated", noted)
        for place in range(20_000):
            now = []
            rand_augmented(pixels, np.random.default_rng([1, 0, 2, place]), how)
            found.append(now)
    return found


def test_each_layer_is_applied_one_time_in_two(calls):
    counts = Counter(map(len, calls))
    assert chisquare([counts[n] for n in range(3)], [5_000, 10_000, 5_000]).pvalue > 1e-4
    assert sum(counts.values()) == 20_000


def test_operations_have_equal_chances_and_may_come_twice(calls):
    names = Counter(name for image in calls for name, *_ in image)
    assert set(names) == set(NAMES)
    assert chisquare([names[name] for name in NAMES]).pvalue > 1e-4
    pairs = [image for image in calls if len(image) == 2]
    assert binomtest(sum(a[0] == b[0] for a, b in pairs), len(pairs), 1 / 15).pvalue > 1e-4


def test_levels_are_normal_and_directions_even(calls):
    levels = np.array([level for image in calls for _, level, _, _ in image])
    assert ks_2samp(levels, norm(9, 0.5).rvs(len(levels), random_state=0)).pvalue > 1e-4
    ways = [negated for image in calls for *_, negated, _ in image]
    assert binomtest(sum(ways), len(ways), 0.5).pvalue > 1e-4
    assert {fill for image in calls for *_, fill in image} == {FILL}


def test_operations_follow_one_another_as_drawn(calls):
    how, picture = rand_augment(SPEC, mean=MEAN), pictures()["blocks 64 x 63"]
    for place, drawn in enumerate(calls[:60]):
        expected = Image.fromarray(picture)
        for name, level, negated, fill in drawn:
            expected = operated(expected, name, level=level, negated=negated, fill=fill)
        pixels = picture.copy()
        rand_augmented(pixels, np.random.default_rng([1, 0, 2, place]), how)
        np.testing.assert_array_equal(pixels, expected)


def timms_box(rng, height, width):
    """timm's random erasing as its source states it: top, left, height and width."""
    for _ in range(10):
        area = rng.uniform(0.02, 1 / 3) * height * width
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w < width and h < height:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    return None


@pytest.mark.parametrize(("height", "width"), [(224, 224), (28, 28), (60, 200)])
def test_boxes_are_distributed_as_timms(height, width):
    """Kolmogorov-Smirnov on 10,000 boxes each; p < 1e-4 would come up once in 10,000 runs, and the seeds are fixed."""
    theirs, ours, generator = random.Random(1), np.random.default_rng(2), range(10_000)
    expected = np.array([timms_box(theirs, height, width) or (0, 0, 0, 0) for _ in generator])
    found = np.array([box(height, width, ours) or (0, 0, 0, 0) for _ in generator])
    for number, side in enumerate(("top", "left", "height", "width")):
        assert ks_2samp(found[:, number], expected[:, number]).pvalue > 1e-4, side
    top, left, tall, wide = found[found[:, 2] > 0].T
    assert ks_2samp(found[:, 2] * found[:, 3], expected[:, 2] * expected[:, 3]).pvalue > 1e-4
    assert ((tall < height) & (wide < width) & (top + tall <= height) & (left + wide <= width)).all()
    if height == width == 224:
        share, ratio = tall * wide / height / width, tall / wide
        assert (share.min(), share.max()) == (pytest.approx(0.02, abs=2e-3), pytest.approx(1 / 3, abs=5e-3))
        assert (ratio.min(), ratio.max()) == (pytest.approx(0.3, rel=0.06), pytest.approx(1 / 0.3, rel=0.06))


def test_no_box_fits_a_strip():
    assert box(224, 1, np.random.default_rng(0)) is None
    pixels = np.full((224, 1, 3), 7, np.uint8)
    erase(pixels, np.random.default_rng(0), Erasing(1.0, MEAN, STD))
    assert (pixels == 7).all()


def test_noise_is_the_normalised_images_but_for_black_and_white():
    """Of a box, each channel: the share cut off, and what lies between against the normal distribution."""
    noise, how = [], Erasing(1.0, MEAN, STD)
    for place in range(12):
        pixels = np.zeros((224, 224, 3), np.uint8)
        erase(pixels, np.random.default_rng([0, 0, 3, place]), how)
        top, left, tall, wide = expected_box(place)
        noise.append(pixels[top : top + tall, left : left + wide].reshape(-1, 3))
        pixels[top : top + tall, left : left + wide] = 0
        assert not pixels.any(), "nothing outside of the box"
    found = np.concatenate(noise)
    assert len(found) > 50_000
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        law, values = norm(255 * mean, 255 * std), found[:, channel]
        edges = np.arange(0.5, 255)  # rounded to 0 is what lies below a half, to 255 what lies above 254.5
        for edge in edges[::25]:
            assert abs((values < edge).mean() - law.cdf(edge)) < 4 * math.sqrt(0.25 / len(found)), (channel, edge)
        cut = law.cdf(0) + law.sf(255)
        assert round(100 * cut, 1) == (2.9, 2.8, 4.0)[channel], "the docstring's figures"
        assert ((values == 0) | (values == 255)).mean() == pytest.approx(cut, abs=0.006)
    assert abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.02


def expected_box(place):
    rng = np.random.default_rng([0, 0, 3, place])
    rng.random()
    return box(224, 224, rng)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_images_are_erased_as_often_as_said(probability):
    erased = 0
    for place in range(4_000):
        pixels = np.zeros((20, 20, 3), np.uint8)
        erase(pixels, np.random.default_rng([5, 0, 3, place]), Erasing(probability, MEAN, STD))
        erased += pixels.any()
    assert binomtest(int(erased), 4_000, probability).pvalue > 1e-4  # of 0 and 1 no image may differ
