"""Compares the hours that `mae plan` predicts with runs on the shipped images and this CPU.

    python -m tests.benchmarks.bench_plan [--rounds 3]

Prints, after each round and for models of several sizes, the planned and the measured time of an epoch and their ratio.
The measured time is the median over a run's epochs without the first, in which the graph is compiled. The planned time
is the mean of one plan before and one after the run, so that both see the same drift of the machine's speed. The median
ratio of the two plans is printed too: if it is not near 1, the machine is too busy for this. Nothing is checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from datasets.sample import unpack_sample
from mae.config.load import load_config
from mae.config.sections import Config
from mae.data import prepare
from mae.planning import estimate
from mae.train import train

CASES = {  # changes of the demo's job
    "demo, one rank": ["device.ranks=1"],
    "demo, two ranks": ["device.ranks=2"],
    "twice as wide": ["device.ranks=1", "model.embed_dim=192"],
    "twice as deep, batch 64": ["device.ranks=1", "model.depth=8", "pretrain.batch_size=64"],
    "accumulated twice": ["device.ranks=1", "pretrain.accum_iter=2"],
}
EPOCHS = 4


def main() -> None:
    """Run the cases in turn and print a line for each and round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = prepare(unpack_sample(folder / "sample").root, folder)
        for number in range(rounds):
            for case, changes in CASES.items():
                job = [f"pretrain.epochs={EPOCHS}", "pretrain.warmup_epochs=1", f"seed={number}", "finetune=null"]
                config = load_config("configs/demo.yaml", [*changes, *job, f"data.records={records}"])
                before = _planned_seconds(config)
                run = train(config, workspace=folder / case)  # accumulated by one rank, or two ranks: the same run
                after = _planned_seconds(config)
                drift = max(before, after) / min(before, after)
                found[case].append(((before + after) / 2, _epoch_seconds(run.run_dir), drift))
                print(_summary(case, found[case]), flush=True)


def _summary(case: str, times: list[tuple[float, float, float]]) -> str:
    """Medians of the rounds so far."""
    planned, measured, drift = (statistics.median(values) for values in zip(*times, strict=True))
    ratios = [p / m for p, m, _ in times]
    spread = f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, n {len(ratios)})"
    return f"{case:24s} epoch planned {planned:6.2f} s, measured {measured:6.2f} s, {spread}, plans {drift:.2f} apart"


def _planned_seconds(config: Config) -> float:
    """Of an epoch of pre-training."""
    return estimate(config).value("pretrain", "time") * 3600 / EPOCHS


def _epoch_seconds(run_dir: Path) -> float:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    ends = {int(line["epoch"]): line["seconds"] for line in lines if line["epoch"] == int(line["epoch"])}
    return statistics.median(ends[epoch] - ends[epoch - 1] for epoch in range(2, EPOCHS + 1))


if __name__ == "__main__":
    main()
