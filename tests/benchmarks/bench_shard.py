"""Sharding beside copying the same files, MosaicML Streaming's MDSWriter and WebDataset's ShardWriter.

python -m tests.benchmarks.bench_shard [PHOTOS] [--photos 6000] [--processes 2] [--rounds 5]

All four write the same photos of ImageNet's ordinary size (`tests.benchmarks.photos`) in the same number of processes,
each file read once from the page cache, and end with an fsync of every file written:

    copy         the files of each shard one after the other into one file, nothing else
    mae          `mae data shard`: verifies each source's SHA-256, writes MindRecord, SHA-256 of each shard
    streaming    MDSWriter of bytes and int, one writer a process, no compression, SHA-1 of each shard as its users do
    webdataset   ShardWriter of .jpg and .cls, one writer a process, no digests

Each takes its turn in every round, in processes that have imported what they need. `mae` is timed as a whole: plan,
shards, index. streaming imports torchvision for classes that are not used here; where there is none, an empty module
stands in for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import NamedTuple

from joblib.externals.loky import ProcessPoolExecutor

from datasets.base.files import fsync
from datasets.records import load_index
from datasets.records.rows import read_sources
from datasets.sharding import write_records
from datasets.validation.validate import validate


class Work(NamedTuple):
    """One shard for one writer."""

    number: int
    files: list[tuple[str, int]]  # path and label
    out: Path


def copy(work: Work) -> None:
    """The files of a shard into one file."""
    path = work.out / f"{work.number:05d}.bin"
    with open(path, "wb", buffering=0) as file:
        for name, _ in work.files:
            descriptor = os.open(name, os.O_RDONLY)
            file.write(os.read(descriptor, 1 << 24))
            os.close(descriptor)
    fsync(path)


def streaming(work: Work) -> None:
    """One shard of MosaicML Streaming."""
    writer_class = _mds_writer()
    out = work.out / f"{work.number:05d}"
    columns = {"image": "bytes", "label": "int"}
    with writer_class(out=str(out), columns=columns, hashes=["sha1"], size_limit=(1 << 32) - 1) as writer:
        for name, label in work.files:
            with open(name, "rb") as file:
                writer.write({"image": file.read(), "label": label})
    for path in out.iterdir():
        fsync(path)


def webdataset(work: Work) -> None:
    """One shard of WebDataset."""
    from webdataset import ShardWriter

    pattern = str(work.out / f"{work.number:05d}-%06d.tar")
    with ShardWriter(pattern, maxsize=1 << 40, maxcount=1 << 40, verbose=0) as writer:
        for row, (name, label) in enumerate(work.files):
            with open(name, "rb") as file:
                writer.write({"__key__": f"{row:09d}", "jpg": file.read(), "cls": label})
    fsync(Path(pattern % 0))


def _mds_writer() -> type:
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in (
            "torchvision",
            "torchvision.transforms",
            "torchvision.transforms.functional",
            "torchvision.datasets",
        ):
            module = sys.modules.setdefault(name, types.ModuleType(name))
            module.__spec__ = ModuleSpec(name, None)
            module.__getattr__ = _anything  # type: ignore[method-assign]
    from streaming import MDSWriter

    return MDSWriter


def _anything(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def main() -> None:
    """Print a line for each writer, and its rate beside that of the copy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "directory", nargs="?", type=Path, help="photos in train/<class>/ and val/<class>/; default: made"
    )
    parser.add_argument("--photos", type=int, default=6000)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shard-mb", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="on the disk to measure; default: the temporary directory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        _run(Path(scratch), options)


def _run(scratch: Path, options: argparse.Namespace) -> None:
    root = options.directory or _make(scratch / "photos", options.photos)
    validation = validate(root, scratch / "validation")
    write_records(validation.directory, scratch / "first", shard_mb=options.shard_mb, workers=options.processes)
    index = load_index(scratch / "first")
    shards = [_files(scratch / "first" / part.file, root) for part in index.all_shards()]
    images = sum(map(len, shards))
    size = sum(Path(name).stat().st_size for files in shards for name, _ in files)

    def by(writer: Callable[[Work], None]) -> Callable[[Path], None]:
        pool = ProcessPoolExecutor(
            options.processes, timeout=600
        )  # of its own, so that imports of one are not another's

        def write(out: Path) -> None:
            out.mkdir()
            works = [Work(number, files, out) for number, files in enumerate(shards)]
            list(pool.map(writer, works))

        return write

    def ours(out: Path) -> None:
        assert not write_records(validation.directory, out, shard_mb=options.shard_mb, workers=options.processes).reused

    writers = {"copy": by(copy), "mae": ours, "streaming": by(streaming), "webdataset": by(webdataset)}
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    shutil.rmtree(scratch / "first")
    for round_number in range(options.rounds + 1):
        for name, write in writers.items():
            out = scratch / "out"
            os.sync()
            started = time.perf_counter()
            write(out)
            if round_number:  # the first round imports and warms the cache
                seconds[name].append(time.perf_counter() - started)
            shutil.rmtree(out)
    print(
        f"{images} photos, {size / 1e6:.0f} MB, {len(shards)} shards, {options.processes} processes, n={options.rounds}"
    )
    base = statistics.median(seconds["copy"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        spread = f"{min(times):.2f}-{max(times):.2f} s"
        rate = f"{images / middle:7.0f} images/s {size / middle / 1e6:6.0f} MB/s"
        print(f"{name:11} {middle:6.2f} s ({spread})  {rate}  {base / middle:.2f} x copy")
    print(json.dumps({"photos": images, "bytes": size, "seconds": seconds}))


def _make(directory: Path, count: int) -> Path:
    from tests.benchmarks.photos import photos

    for number, path in enumerate(photos(directory / "made", count, 0)):
        target = directory / "root" / ("val" if number % 20 == 0 else "train") / f"class{number // 20 % 10}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return directory / "root"


def _files(shard_file: Path, root: Path) -> list[tuple[str, int]]:
    table = read_sources(shard_file)
    return [
        (str(root / path), label)
        for path, label in zip(*(table.column(c).to_pylist() for c in ("path", "label")), strict=True)
    ]


if __name__ == "__main__":
    main()
