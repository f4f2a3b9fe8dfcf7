"""Position embeddings: the fixed 2-D sin-cos one (He et al. 2022, appendix A), and interpolation to another grid."""

from __future__ import annotations

import numpy as np


def sincos_2d(embed_dim: int, grid: tuple[int, int]) -> np.ndarray:
    """Return the position embedding of a class token and a (rows, columns) grid of patches.

    The first half of the channels encodes the column and the second the row ("w goes first" upstream); each half is
    [sin | cos] with omega_k = 10000^(-k / (embed_dim / 4)), computed in float64. The class token's row is zero.

    Returns:
        (1, 1 + rows * columns, embed_dim) float32.
    """
    rows, columns = np.meshgrid(*(np.arange(size, dtype=np.float64) for size in grid), indexing="ij")
    omega = 10000.0 ** -(np.arange(embed_dim // 4, dtype=np.float64) / (embed_dim / 4))
    angles = [np.outer(axis.ravel(), omega) for axis in (columns, rows)]
    patches = np.concatenate([part for angle in angles for part in (np.sin(angle), np.cos(angle))], axis=1)
    return np.concatenate([np.zeros((1, embed_dim)), patches])[None].astype(np.float32)


def interpolate(pos_embed: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Return a position embedding (1, 1 + old rows * columns, D) on another (rows, columns) grid; the class row stays.

    Bicubic as torch's `interpolate(mode="bicubic", align_corners=False)` computes it, which upstream and timm use:
    cubic convolution with A = -0.75, repeated borders, no smoothing when the grid becomes smaller.

    Returns:
        (1, 1 + new rows * columns, D) float32.
    """
    dim = pos_embed.shape[-1]
    patches = pos_embed[0, 1:].reshape(*old, dim).astype(np.float64)
    rows, columns = (_bicubic(*sizes) for sizes in zip(old, new))
    moved = np.einsum("ij,jkd,lk->ild", rows, patches, columns, optimize=True)
    return np.concatenate([pos_embed[0, :1], moved.reshape(-1, dim).astype(np.float32)])[None]


def _bicubic(old: int, new: int) -> np.ndarray:
    """Matrix (new, old) that resamples a line of `old` samples at the centres of `new` cells.

    Positions are float32 as in torch: float64 positions would differ by more than the products do.
    """
    centres = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
    left = np.floor(centres).astype(int)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        distance = np.abs(centres - (left + tap))
        np.add.at(matrix, (np.arange(new), (left + tap).clip(0, old - 1)), _cubic(distance))
    return matrix


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, far)
