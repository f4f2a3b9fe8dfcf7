"""Images a second of one rank on one core, and of two ranks on a core each, through `mae train` on the shipped images.

    python -m tests.benchmarks.bench_scaling [--rounds 3]

Every rank has the same batch, so that twice the rate is perfect. For models of several sizes, in turn; the rate of a
run is the median of its readings behind the first epoch. Prints medians and the ratio with its range. Not a test: no
number is checked.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from datasets.sample import unpack_sample
from mae.config import load_config
from mae.metrics import METRICS, read_lines
from mae.prepare import prepare
from mae.train import train

CASES = {  # changes of the demo's job, and epochs
    "demo, 64 images a rank": ([], 4),
    "twice as wide": (["model.embed_dim=256", "model.decoder_embed_dim=128"], 3),
    "ViT-S's encoder": (["model.embed_dim=384", "model.depth=12", "model.num_heads=6"], 2),
}


def main() -> None:
    """Run the cases in turn and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = prepare(unpack_sample(folder / "sample").root, folder)
        for number in range(options.rounds):
            for case, (changes, epochs) in CASES.items():
                rates = []
                for ranks in (1, 2):
                    length = [f"pretrain.epochs={epochs}", "pretrain.warmup_epochs=1", f"seed={number}"]
                    settings = [*changes, *length, f"device.ranks={ranks}", f"data.records={records}"]
                    os.sched_setaffinity(0, cores[:ranks])  # a rank computes with a thread for each of its cores
                    rates.append(_rate(train(load_config("configs/demo.yaml", settings), workspace=folder).run_dir))
                found[case].append((rates[0], rates[1]))
    for case, pairs in found.items():
        one, two = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratios = [two / one for one, two in pairs]
        spread = f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f}, n {len(ratios)})"
        print(f"{case:24s} one rank {one:7.0f} images/s, two {two:7.0f}: {spread}")


def _rate(run_dir: Path) -> float:
    lines = [line for line in read_lines(run_dir / METRICS) if line["epoch"] > 1]
    return statistics.median(line["samples_per_second"] for line in lines)


if __name__ == "__main__":
    main()
