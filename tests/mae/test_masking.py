"""Masks: which patches are kept, and that the two id arrays describe the same shuffle."""

import numpy as np
import pytest

from mae.masking import ids_from_noise, kept_patches


@pytest.mark.parametrize(
    ("patches", "mask_ratio", "kept"),
    [(196, 0.75, 49), (256, 0.75, 64), (49, 0.75, 12), (16, 0.75, 4), (4, 0.5, 2), (10, 0.99, 0)],
)
def test_kept_patches_round_down_as_upstream(patches, mask_ratio, kept):
    assert kept_patches(patches, mask_ratio) == kept


def test_small_noise_is_kept_in_order_of_noise():
    ids_keep, ids_restore = ids_from_noise(np.array([[0.9, 0.1, 0.5, 0.3]]), 0.5)
    assert ids_keep.tolist() == [[1, 3]]
    assert ids_restore.tolist() == [[3, 0, 2, 1]]  # patch 1 comes first in the shuffle, patch 0 last
    assert ids_keep.dtype == ids_restore.dtype == np.int32


def test_restore_is_the_inverse_of_the_shuffle():
    noise = np.random.default_rng(0).random((8, 49))
    ids_keep, ids_restore = ids_from_noise(noise, 0.75)
    shuffled = np.take_along_axis(noise, np.argsort(noise, axis=1), 1)
    np.testing.assert_array_equal(np.take_along_axis(shuffled, ids_restore, 1), noise)
    kept = np.sort(noise, axis=1)[:, :12]
    np.testing.assert_array_equal(np.take_along_axis(noise, ids_keep, 1), kept)


def test_ties_are_broken_by_position():
    ids_keep, _ = ids_from_noise(np.zeros((1, 8)), 0.5)
    assert ids_keep.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("mask_ratio", [0.0, 0.9])
def test_a_mask_without_visible_or_removed_patches_is_refused(mask_ratio):
    with pytest.raises(ValueError, match="at least one must be kept and one removed"):
        ids_from_noise(np.zeros((1, 4)), mask_ratio)
