"""Random masks. They are made on the host, because sorting and scatter are slow on a 910A."""

from __future__ import annotations

import numpy as np


def kept_patches(patches: int, mask_ratio: float) -> int:
    """Return the number of visible patches, int(patches * (1 - mask_ratio)) as upstream: 49 of 196 at 0.75."""
    return int(patches * (1 - mask_ratio))


def ids_from_noise(noise: np.ndarray, mask_ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask that noise gives: the patches with the smallest noise are visible.

    Args:
        noise: (N, L), any real dtype; ties are broken by position.
        mask_ratio: share of patches that is removed.

    Returns:
        ids_keep (N, len_keep) int32, positions of the visible patches in the order the encoder sees them;
        ids_restore (N, L) int32, the inverse of the whole shuffle: entries below len_keep are visible.

    Raises:
        ValueError: fewer than one patch would be visible or removed.
    """
    patches = noise.shape[1]
    len_keep = kept_patches(patches, mask_ratio)
    if not 0 < len_keep < patches:
        raise ValueError(
            f"mask_ratio {mask_ratio} keeps {len_keep} of {patches} patches; at least one must be kept and one removed"
        )
    ids_shuffle = np.argsort(noise, axis=1, kind="stable").astype(np.int32)
    ids_restore = np.argsort(ids_shuffle, axis=1, kind="stable").astype(np.int32)
    return ids_shuffle[:, :len_keep], ids_restore
