"""What more pre-training is worth: epochs against accuracy on the shipped images, for several seeds.

    python -m tests.benchmarks.bench_epochs --workspace /tmp/epochs [--epochs 0,15,30,60,120,240] [--seeds 0,1,2]

Trains the demo's job at every length and seed and prints a line for each length: top-1 of the linear probe and of
nearest neighbours on the 1,000 validation images, as the mean over seeds with the lowest and the highest. 0 epochs is
the random initialisation. What the workspace already has is not trained or measured again. Not a test: no number is
checked.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from datasets.sample import unpack_sample
from mae.config.load import load_config
from mae.data import prepare
from mae.evaluation.evaluate import evaluate
from mae.train import train

PROTOCOLS = ("logistic", "knn")


def main() -> None:
    """Train, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--epochs", default="0,15,30,60,120,240")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    records = prepare(unpack_sample(options.workspace / "sample").root, options.workspace)
    print("epochs   " + "   ".join(f"{protocol:26s}" for protocol in PROTOCOLS))
    for epochs in map(int, options.epochs.split(",")):
        columns: dict[str, list[float]] = {protocol: [] for protocol in PROTOCOLS}
        for seed in options.seeds.split(","):
            for protocol, top1 in _measure(epochs, seed, records, options.workspace).items():
                columns[protocol].append(top1)
        print(f"{epochs:6d}   " + "   ".join(_summary(values) for values in columns.values()), flush=True)


def _measure(epochs: int, seed: str, records: Path, workspace: Path) -> dict[str, float]:
    """Top-1 in percent by each protocol of one run; of its random initialisation where `epochs` is 0."""
    encoder, length = ("pretrained", epochs) if epochs else ("random", 15)
    changes = [f"pretrain.epochs={length}", f"seed={seed}", f"data.records={records}"]
    config = load_config("configs/demo.yaml", changes)
    run = train(config, workspace=workspace)
    found = {}
    for protocol in PROTOCOLS:
        scores = evaluate(run.checkpoint, records, protocol=protocol, config=config, workspace=workspace).results
        found[protocol] = 100 * next(score.top1 for score in scores if score.encoder == encoder)
    return found


def _summary(values: list[float]) -> str:
    return f"{statistics.mean(values):5.1f} % ({min(values):.1f} to {max(values):.1f})".ljust(26)


if __name__ == "__main__":
    main()
