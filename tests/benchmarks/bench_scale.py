"""Small files by the million: seconds, files a second and resident memory of the data commands.

    python -m tests.benchmarks.bench_scale [--files 10000 100000 1281167] [--scratch DIR]

Each count is a data set of its own: that many different JPEGs of 32 x 32 pixels in 1,000 folders of train/, and 5 files
for each folder of val/. A file is one of 64 encoded pictures with its own number in a JPEG comment, so that all differ
and none takes long to make. The commands are run as a user runs them; every 0.2 s the resident memory of the command
and its worker processes is added up from /proc (Pss, in which shared pages count once; Rss beside it).
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.base.parallel import in_processes

CLASSES = 1000
VAL_PER_CLASS = 5
REPOSITORY = Path(__file__).resolve().parents[2]


class Measured(NamedTuple):
    """A command: its wall time, and the most memory of its process tree, in MB."""

    seconds: float
    pss: float
    rss: float


def main() -> None:
    """Print a line for each command and number of files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", default=[10_000, 100_000, 1_281_167], help="training files")
    parser.add_argument("--scratch", type=Path, help="on the disk to measure; default: the temporary directory")
    parser.add_argument("--shard-mb", type=int, default=64)
    options = parser.parse_args()
    print(
        f"{'files':>9} {'command':16} {'seconds':>8} {'files/s':>9} {'peak Pss MB':>12} {'peak Rss MB':>12}", flush=True
    )
    for count in options.files:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            _run(Path(scratch), count, options.shard_mb)


def _run(scratch: Path, count: int, shard_mb: int) -> None:
    root, validation, records = scratch / "images", scratch / "validation", scratch / "records"
    for _ in in_processes(_write_class, [(root, number, count) for number in range(CLASSES)]):
        pass
    files = count + CLASSES * VAL_PER_CLASS
    validate = ["validate", str(root), "--out", str(validation)]
    shard = ["shard", str(validation), "--out", str(records), "--shard-mb", str(shard_mb)]
    for name, arguments in {
        "validate": validate,
        "shard": shard,
        "check": ["check", str(records)],
        "check --root": ["check", str(records), "--root", str(root)],
        "second validate": validate,
        "second shard": shard,
    }.items():
        seen = _measure(arguments)
        rate = files / seen.seconds
        print(f"{files:9} {name:16} {seen.seconds:8.1f} {rate:9.0f} {seen.pss:12.0f} {seen.rss:12.0f}", flush=True)


def _write_class(job: tuple[Path, int, int]) -> None:
    """The files of one class: its share of `count`, and its validation files."""
    root, number, count = job
    pictures = _pictures()
    for split, first, last in (
        ("train", count * number // CLASSES, count * (number + 1) // CLASSES),
        ("val", number * VAL_PER_CLASS, (number + 1) * VAL_PER_CLASS),
    ):
        folder = root / split / f"n{number:08d}"
        folder.mkdir(parents=True)
        for file in range(first, last):
            picture = pictures[file % len(pictures)]
            comment = f"{split} {file:09d}".encode()
            marked = picture[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + picture[2:]
            (folder / f"{file:09d}.JPEG").write_bytes(marked)


def _pictures() -> list[bytes]:
    pictures = []
    for seed in range(64):
        small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
        pictures.append(out.getvalue())
    return pictures


def _measure(arguments: list[str]) -> Measured:
    started = time.perf_counter()
    command = [sys.executable, "-m", "mae", "data", *arguments]
    pss = rss = 0.0
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            sizes = [_memory(pid) for pid in _tree(process.pid)]
            pss, rss = max(pss, sum(size[0] for size in sizes)), max(rss, sum(size[1] for size in sizes))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return Measured(time.perf_counter() - started, pss / 1e3, rss / 1e3)


def _tree(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        children = [int(c) for t in tasks for c in Path(f"/proc/{pid}/task/{t}/children").read_text().split()]
    except OSError:  # it has ended
        return []
    return [pid, *(descendant for child in children for descendant in _tree(child))]


def _memory(pid: int) -> tuple[int, int]:
    """Pss and Rss in kB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return int(values["Pss"]), int(values["Rss"])


if __name__ == "__main__":
    main()
