"""Fixed 2-D sin-cos position embedding (He et al. 2022, appendix A; state-dict key `pos_embed`)."""

from __future__ import annotations

import numpy as np


def sincos_2d(embed_dim: int, grid: tuple[int, int]) -> np.ndarray:
    """Position embedding of a (rows, columns) grid of patches behind one cls token.

    The first half of the channels encodes the column and the second the row ("w goes first" upstream); each half is
    [sin | cos] with omega_k = 10000^(-k / (embed_dim / 4)), computed in float64. The cls row is zero.

    Returns:
        (1, 1 + rows * columns, embed_dim) float32.
    """
    rows, columns = np.meshgrid(*(np.arange(size, dtype=np.float64) for size in grid), indexing="ij")
    omega = 10000.0 ** -(np.arange(embed_dim // 4, dtype=np.float64) / (embed_dim / 4))
    angles = [np.outer(axis.ravel(), omega) for axis in (columns, rows)]
    patches = np.concatenate([part for angle in angles for part in (np.sin(angle), np.cos(angle))], axis=1)
    return np.concatenate([np.zeros((1, embed_dim)), patches])[None].astype(np.float32)
