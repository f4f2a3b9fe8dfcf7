"""Which image is stored in which shard, and in which order; known before any image is read.

An image's key is the 64-bit BLAKE2b of its path, with the seed as secret. A split is sorted by the keys and cut into
shards at equal ranges of them. So a split is shuffled as a whole and each shard is a fair sample of it. All rows are
held as Arrow columns, at most 200 bytes each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.manifest.faults import fault_names
from datasets.manifest.rows import MANIFEST
from datasets.records.index import RecordOptions

VERSION = 4  # raise it when the same validation may give other records, so that finished outputs are written again
BATCH = 64  # records passed to MindRecord at a time, at most
BATCH_BYTES = 4_000_000
_COLUMNS = ["path", "class_name", "label", "bytes", "width", "height", "digest", "checksum", "faults"]
_SLICE = 1 << 15  # rows that are Python objects at a time


class PlannedShard(NamedTuple):
    """A shard before it is written."""

    file: str  # relative to the records directory
    images: int
    page: int  # bytes of a page of the MindRecord file; the same for all shards of a split
    header: int  # bytes of its header; the same for all shards of a split


def planned_shards(directory: Path, split: str, options: RecordOptions) -> Iterator[tuple[PlannedShard, pa.Table]]:
    """Yield the shards of a split of a validated data set, each with its rows in the order of its records.

    Shards without any image, which happen with few images, are left out; the others keep their names.

    Args:
        directory: contains the manifest.
        split: train or val.
        options: of the records.
    """
    rows = pq.read_table(directory / MANIFEST, columns=_COLUMNS, filters=[("split", "=", split), ("kept", "=", True)])
    rows = rows.append_column("convert", _conversions(rows.column("faults"), frozenset(options.convert)))
    keys = _keys(rows.column("path"), options.seed)
    order = np.argsort(keys, kind="stable")
    count = min(len(keys), -(-int(rows.column("bytes").to_numpy().sum()) // (options.shard_mb * 1_000_000)))
    shards = (keys[order] >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)
    bounds = np.searchsorted(shards, np.arange(count + 1, dtype=np.uint64))
    page, header = page_and_header(_limits(rows, options.short_side)[order], bounds)
    for number, (start, end) in enumerate(zip(bounds, bounds[1:])):
        if start < end:
            file = f"{split}/{split}-{number:05d}-of-{count:05d}.mindrecord"
            yield PlannedShard(file, int(end - start), page, header), rows.take(order[start:end])


def stored_as_is(rows: pa.Table, short_side: int | None) -> np.ndarray:
    """Return which files, (N,) bool, are stored unchanged."""
    plain = pc.equal(rows.column("convert"), "").to_numpy()
    return plain if short_side is None else plain & (_sides(rows).min(axis=1) <= short_side)


def page_and_header(limits: np.ndarray, bounds: np.ndarray) -> tuple[int, int]:
    """Return page and header size in bytes of a split's MindRecord files; MindDataset wants them equal in all.

    An image is stored within one page. So half an image is wasted at the end of each page, and up to a page at the end
    of the file: waste = page + total / page * mean / 2, which is smallest at page = sqrt(total * mean / 2). For
    ImageNet in shards of 1 GB that is 8 MB and 1.5 %. The header is written in full. It describes each page in about
    300 bytes and each batch in about 30. MindRecord's defaults, pages of 32 MB and a header of 16 MB, cost 50 MB a
    file. Both are rounded up to powers of two.

    Args:
        limits: (N,) upper bound of each image's bytes, in the order of the records.
        bounds: (shards + 1,) index of each shard's first image in `limits`.
    """
    sums = np.concatenate([[0], np.cumsum(limits)])
    totals, counts = np.diff(sums[bounds]), np.diff(bounds)
    best = math.isqrt(int(sums[-1]) ** 2 // (2 * len(limits) * len(totals)))  # of the mean shard
    page = _power_of_two(max(1 << 15, int(limits.max()) + 1024, min(best, 1 << 28)))  # 32 KiB to 256 MiB
    fields = 64 * counts  # what a record needs besides its image, in pages of their own
    pages = 2 * totals // page + fields // page + 4  # images just above half a page fill every page by half
    batches = counts // BATCH + 2 * totals // BATCH_BYTES + 1
    return page, _power_of_two(max(1 << 16, int((512 * pages + 48 * batches).max())))


def _conversions(faults: pa.ChunkedArray, convert: frozenset[str]) -> pa.Array:
    """Return those of each file's faults, (N,) names with commas, that are in `convert`."""
    coded = pc.dictionary_encode(faults).combine_chunks()
    kept = [",".join(sorted(fault_names(names) & convert)) for names in coded.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(coded.indices, pa.array(kept, pa.string())).dictionary_decode()


def _keys(paths: pa.ChunkedArray, seed: int) -> np.ndarray:
    secret = str(seed).encode()
    digests = (
        hashlib.blake2b(path.encode(), digest_size=8, key=secret).digest()
        for start in range(0, len(paths), _SLICE)
        for path in paths.slice(start, _SLICE).to_pylist()
    )
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _sides(rows: pa.Table) -> np.ndarray:
    """Return width and height, (N, 2) float64 in pixels; 0 where unknown."""
    sides = [rows.column(name).fill_null(0).to_numpy() for name in ("width", "height")]
    return np.stack(sides, axis=1).astype(np.float64)


def _limits(rows: pa.Table, short_side: int | None) -> np.ndarray:
    """Return an upper bound, (N,) int64, of the bytes of each stored image.

    JPEG of quality 95 needs less than 2 bytes a pixel even for noise (measured: 1.5). It pads sides to multiples of 16.
    """
    sides, size = _sides(rows), rows.column("bytes").to_numpy()
    scale = np.minimum(1.0, short_side / np.maximum(sides.min(axis=1), 1)) if short_side else np.ones(len(size))
    converted = (2 * np.prod(sides * scale[:, None] + 16, axis=1)).astype(np.int64) + 4096
    unshrunk = np.where(stored_as_is(rows, None), size, np.maximum(size, converted))
    return np.where(scale < 1, converted, unshrunk)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
