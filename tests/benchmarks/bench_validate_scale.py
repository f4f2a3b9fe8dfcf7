"""Validation of very many small files: seconds and memory of a first, an unchanged and a slightly changed run.

    python -m tests.benchmarks.bench_validate_scale DIRECTORY [--files 50000] [--classes 1000] [--workers 2]

The files are made in DIRECTORY/images-<files> unless they are there. Memory is the proportional set size of the process
and all its children together, the largest of samples taken every 0.2 s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import threading
import time
from pathlib import Path

import psutil

from datasets.validate import validate
from tests.benchmarks.small_files import small_files

CHANGED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    wanted = parser.parse_args()
    root, out = wanted.directory / f"images-{wanted.files}", wanted.directory / f"validation-{wanted.files}"
    if not root.exists():
        small_files(root, wanted.files, classes=wanted.classes)
    shutil.rmtree(out, ignore_errors=True)
    print(f"{wanted.files} files, {wanted.classes} classes, {wanted.workers} workers")
    run("first", root, out, wanted.workers)
    run("unchanged", root, out, wanted.workers)
    for number, path in enumerate(sorted((root / "train").rglob("*.JPEG"))[:: max(1, wanted.files // 2 // CHANGED)]):
        if number < CHANGED:
            os.utime(path)
    run("changed", root, out, wanted.workers)


def run(name: str, root: Path, out: Path, workers: int) -> None:
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.2):
            me = psutil.Process()
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            peak[0] = max(peak[0], total)

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    result = validate(root, out, workers=workers)
    seconds = time.perf_counter() - started
    done.set()
    sampler.join()
    files = result.train + result.val
    print(
        f"{name:10} {seconds:7.1f} s, {files / seconds:7.0f} files/s, {peak[0] / 1e6:6.0f} MB, "
        f"examined {result.examined}, reused {result.reused}",
        flush=True,
    )


if __name__ == "__main__":
    main()
