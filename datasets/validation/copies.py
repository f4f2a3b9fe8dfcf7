"""Which files are copies of others, or look like them, in a whole data set at once: arrays, no Python objects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MOST_BITS = 8  # that near duplicates may differ in: with more bands, each of fewer bits, nearly every pair is compared

_BITS = 64


class Copies(NamedTuple):
    """For each of N files the file that it is a copy of, or -1."""

    leak: npt.NDArray[np.int64]  # of a training file: the first validation file with its bytes
    duplicate: npt.NDArray[np.int64]  # the first file of the split with its bytes
    near: npt.NDArray[np.int64]  # the first validation, then training file that looks like it


def find_copies(
    content: npt.NDArray[np.int32],
    is_val: npt.NDArray[np.bool_],
    looks: npt.NDArray[np.uint64] | None = None,
    *,
    distance: int = 0,
) -> Copies:
    """Find equal files and, with `looks`, similar pictures.

    Args:
        content: (N,), from 0; the same number for files of the same bytes.
        is_val: (N,).
        looks: (N,), perceptual hashes; those of plain areas, of nearly equal bits, are not compared.
        distance: bits, at most MOST_BITS, in which the hashes of near duplicates differ at most.
    """
    number = np.arange(len(content))
    first_train, first_val = (_firsts(content, np.flatnonzero(is_val == side)) for side in (False, True))
    leak = np.where(~is_val & (first_val < len(content)), first_val, -1)
    duplicate = np.where(is_val, first_val, first_train)
    duplicate[(duplicate == number) | (leak >= 0)] = -1
    near = np.full(len(content), -1, np.int64)
    if looks is not None:
        candidates = np.flatnonzero((leak < 0) & (duplicate < 0))
        candidates = candidates[np.lexsort((candidates, ~is_val[candidates]))]
        near[candidates] = _near(candidates, looks[candidates], distance)
    return Copies(leak, duplicate, near)


def _firsts(content: npt.NDArray[np.int32], members: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(N,) the smallest of the members with the same content; N where there is none."""
    first = np.full(len(content), len(content), np.int64)
    np.minimum.at(first, content[members], members)
    return first[content]


def _near(numbers: npt.NDArray[np.int64], looks: npt.NDArray[np.uint64], distance: int) -> npt.NDArray[np.int64]:
    """For each picture the first before it within the distance, or -1.

    Two hashes that differ in at most d bits agree in one of d + 1 bands of bits, so only those that share a band are
    compared (the pigeonhole principle).
    """
    plain = (_ones(looks) < _BITS // 8) | (_ones(looks) > _BITS - _BITS // 8)
    values, first, which = np.unique(looks, return_index=True, return_inverse=True)
    best = first.astype(np.int64)  # place of the first picture with or near each value
    for band in range(distance + 1):
        low, high = band * _BITS // (distance + 1), (band + 1) * _BITS // (distance + 1)
        keys = values >> np.uint64(low) & np.uint64((1 << high - low) - 1)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for step in range(1, len(values)):
            same = np.flatnonzero(ordered[step:] == ordered[:-step])
            if not len(same):
                break
            left, right = order[same], order[same + step]
            alike = _ones(values[left] ^ values[right]) <= distance
            left, right = left[alike], right[alike]
            np.minimum.at(best, left, first[right])
            np.minimum.at(best, right, first[left])
    place = best[which.reshape(-1)]
    found = (place < np.arange(len(looks))) & ~plain
    return np.where(found, numbers[place], -1)


def _ones(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Number of set bits of each."""
    pairs = values - (values >> np.uint64(1) & np.uint64(0x5555555555555555))
    fours = (pairs & np.uint64(0x3333333333333333)) + (pairs >> np.uint64(2) & np.uint64(0x3333333333333333))
    eights = (fours + (fours >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (eights * np.uint64(0x0101010101010101) >> np.uint64(56)).astype(np.uint8)
