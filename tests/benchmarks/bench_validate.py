"""Validation beside a plain Pillow decode of the same photos, in the same number of processes.

    python -m tests.benchmarks.bench_validate [--photos 3000] [--rounds 7] [--processes 1]

Photos of ordinary ImageNet size (see `photos`), read from the page cache. Each round times, in turns of changing order:

    pillow     Image.open(file).load() of every photo, in chunks, in warm worker processes
    examine    the units of `mae data validate`: list, stat, read, digest, strict decode, write the part
    validate   all of `datasets.validation.validate.validate` into a new directory, with plan, copies and manifest

Prints images per second and core: median, smallest and largest of the rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from datasets.base.parallel import in_processes
from datasets.validation import ValidationPlan, ValidationUnit, validate
from tests.benchmarks.photos import photos

CLASSES = 10


def load_all(paths: list[str]) -> int:
    """The peer."""
    for path in paths:
        Image.open(path).load()
    return len(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=1)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "images"), Path(folder, "out")
        files = make_tree(root, wanted.photos)
        chunks = [files[start : start + 64] for start in range(0, len(files), 64)]
        ways: dict[str, Callable[[], object]] = {
            "pillow": lambda: list(in_processes(load_all, chunks, workers=wanted.processes)),
            "examine": lambda: list(
                in_processes(ValidationUnit.examine, ValidationPlan.make(root, out).units, workers=wanted.processes)
            ),
            "validate": lambda: validate(root, out, workers=wanted.processes),
        }
        mean = statistics.mean(os.path.getsize(path) for path in files)
        print(f"{len(files)} photos of {mean / 1000:.0f} KB, {wanted.processes} processes, {wanted.rounds} rounds")
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(-1, wanted.rounds):  # the first warms caches and processes and is not counted
            names = list(ways) if turn % 2 else list(reversed(ways))
            for name in names:
                started = time.perf_counter()
                ways[name]()
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - started)
                for left in Path(folder).glob("out*"):
                    shutil.rmtree(left)
        rates = {name: [len(files) / value / wanted.processes for value in took] for name, took in seconds.items()}
        for name, rate in rates.items():
            ratios = [one / other for one, other in zip(rate, rates["pillow"], strict=True)]
            print(
                f"{name:9} {statistics.median(rate):6.0f} images/s/process ({min(rate):.0f} to {max(rate):.0f}); "
                f"{statistics.median(ratios):.2f} x pillow ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def make_tree(root: Path, count: int) -> list[str]:
    """Photos in class folders of train and val; their paths in the order of the manifest."""
    made = photos(root / "made", count, seed=0)
    for number, path in enumerate(made):
        folder = root / ("val" if number % 10 == 0 else "train") / f"class{number // 10 % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    (root / "made").rmdir()
    return sorted(str(path) for path in root.rglob("*.jpg"))


if __name__ == "__main__":
    main()
