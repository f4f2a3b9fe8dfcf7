"""Mixup and cutmix against the published formulas: which pixels stay, and what the labels become."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from datasets.augmentation.mixup import keep_map
from mae.config.sections import ModelConfig
from mae.device.context import setup
from mae.model.forward import normalise_pixels
from mae.training.losses import ClassifyLoss

SHAPE = (12, 20)


def maps(mixup, cutmix, count=400):
    return [keep_map(np.random.default_rng([7, i]), SHAPE, mixup=mixup, cutmix=cutmix) for i in range(count)]


def is_box(keep):
    return set(np.unique(keep)) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("name", "mixup", "cutmix", "boxes"),
    [("mixup", 0.8, 0.0, 0.0), ("cutmix", 0.0, 1.0, 1.0), ("both, by equal chance", 0.8, 1.0, 0.5)],
)
def test_which_of_the_two(name, mixup, cutmix, boxes):
    found = maps(mixup, cutmix)
    assert np.mean([is_box(keep) for keep in found]) == pytest.approx(boxes, abs=0.08), name
    assert all(keep.shape == SHAPE and keep.dtype == np.float32 for keep in found)


def test_mixup_keeps_one_share_that_is_beta_distributed():
    shares = np.array([keep.mean() for keep in maps(0.8, 0.0)])
    assert all(np.ptp(keep) == 0 for keep in maps(0.8, 0.0))
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    assert shares.var() == pytest.approx(1 / (4 * 2.6), abs=0.02)  # of Beta(a, a): 1 / (4 (2 a + 1))


def test_cutmix_cuts_one_box_of_the_images_proportions():
    for keep in maps(0.0, 1.0):
        rows, columns = np.nonzero((keep == 0).any(1))[0], np.nonzero((keep == 0).any(0))[0]
        if len(rows):
            box = keep[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert (box == 0).all()
            assert box.size == (keep == 0).sum()
    # uniform shares: half the area on average, less what the border cuts off
    assert 0.55 < np.mean([keep.mean() for keep in maps(0.0, 1.0)]) < 0.75


def test_the_same_draw_is_the_same_map():
    np.testing.assert_array_equal(*[keep_map(np.random.default_rng(3), SHAPE, mixup=0.8, cutmix=1.0) for _ in "ab"])


class MeanColour(nn.Cell):
    """Three classes: how much of each colour an image has."""

    config, drop_path = ModelConfig(image_size=16), 0.0

    def construct(self, images, branches):
        return images.mean((2, 3))


def soft_cross_entropy(pixels, labels, keep, smoothing):
    """timm's formulas in float64: targets smoothed, mixed with the reversed batch by the box's own area."""
    other, classes = pixels[::-1], 3
    mixed = pixels * keep[..., None] + other * (1 - keep[..., None])
    off = smoothing / classes
    targets = np.full((len(labels), classes), off)
    targets[np.arange(len(labels)), labels] = 1 - smoothing + off
    lam = keep.mean()
    targets = lam * targets + (1 - lam) * targets[::-1]
    logits = mixed.mean((1, 2))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(targets * log_p).sum(1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["none", "mixup", "cutmix"])
def test_the_loss_of_mixed_images(name, smoothing):
    setup("CPU", ranks=1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 1], np.int32)
    keep = np.ones((16, 16), np.float32)
    if name == "mixup":
        keep[:] = 0.3
    if name == "cutmix":
        keep[3:9, 2:16] = 0
    inputs = [images, labels] + ([keep] if name != "none" else [])
    found = ClassifyLoss(MeanColour(), smoothing)(*map(Tensor, inputs)).asnumpy()
    pixels = normalise_pixels(images.astype(np.float64), MeanColour.config)
    assert found == pytest.approx(soft_cross_entropy(pixels, labels, keep.astype(np.float64), smoothing), rel=2e-6)
