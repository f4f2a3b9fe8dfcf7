"""Images a second of one rank on one core, and of two ranks on a core each, through `mae train` on the shipped images.

    python -m tests.benchmarks.bench_scaling [--rounds 3]

Every rank has the same batch, so that twice the rate is perfect. What two cores of a machine can do is measured beside
it: two runs of one rank at the same time, which have nothing to tell each other. For batches of several sizes, in turn;
the rate of a run is the median of its readings behind the first epoch, that of one rank the mean of a run on each core,
one before and one behind the others, so that drift is the same for both. Prints medians and ratios with their range
after each round. Not a test: no number is checked.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from datasets.sample import unpack_sample
from mae.config.load import load_config
from mae.data import prepare
from mae.runs.log import METRICS, read_lines
from mae.train import train

CASES = {  # changes of the demo's job
    "demo, 64 images a rank": [],
    "demo, 256 images a rank": ["pretrain.batch_size=256"],
}
LENGTH = ["pretrain.epochs=3", "pretrain.warmup_epochs=1"]


def main() -> None:
    """Run the cases in turn and print a line for each and round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CASES}
    first, second = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(2) as pool:
        folder = Path(name)
        records = prepare(unpack_sample(folder / "sample").root, folder)
        for number in range(options.rounds):
            for case, changes in CASES.items():
                job = [*changes, *LENGTH, f"seed={number}", f"data.records={records}"]
                before = pool.submit(rate, job, {first}, folder / "before").result()
                two = pool.submit(rate, [*job, "device.ranks=2"], {first, second}, folder).result()
                apart = [pool.submit(rate, job, {core}, folder / f"apart{core}") for core in (first, second)]
                both = sum(future.result() for future in apart)
                after = pool.submit(rate, job, {second}, folder / "after").result()
                found[case].append(((before + after) / 2, two, both))
                print(_summary(case, found[case]), flush=True)


def rate(settings: list[str], cores: set[int], workspace: Path) -> float:
    """Train the demo's job with changes on some cores; a rank computes with a thread for each of its own."""
    os.sched_setaffinity(0, cores)
    run = train(load_config("configs/demo.yaml", ["device.ranks=1", *settings]), workspace=workspace)
    lines = [line for line in read_lines(run.run_dir / METRICS) if line["epoch"] > 1]
    return statistics.median(line["samples_per_second"] for line in lines)


def _summary(case: str, rates: list[tuple[float, float, float]]) -> str:
    """Medians of the rounds so far."""
    one, two, apart = (statistics.median(values) for values in zip(*rates, strict=True))
    scaled, possible = ([r[n] / r[0] for r in rates] for n in (1, 2))
    speed = f"{case:26s} images/s: one rank {one:.0f}, two {two:.0f}, two runs {apart:.0f}"
    return f"{speed}; two ranks {_times(scaled)}, two runs {_times(possible)}"


def _times(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f}, n {len(ratios)})"


if __name__ == "__main__":
    main()
