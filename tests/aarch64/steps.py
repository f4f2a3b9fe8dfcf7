"""Prints the loss after eight training steps: `python tests/aarch64/steps.py FOLDER`. Every machine prints the same."""

from __future__ import annotations

import sys
from pathlib import Path

from datasets.sample import unpack_sample
from datasets.sharding import write_records
from datasets.validation import validate
from mae.config.load import load_config
from mae.train import train

SETTINGS = (
    "pretrain.epochs=2",
    "pretrain.batch_size=50",
    "pretrain.warmup_epochs=1",
    "device.ranks=1",
    "model.embed_dim=32",
    "model.depth=2",
)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    images = unpack_sample(folder / "images", train_per_class=20, val_per_class=2).root
    records = write_records(validate(images, folder / "valid").directory, folder / "records").directory
    config = load_config(Path("configs/demo.yaml"), [f"data.records={records}", *SETTINGS])
    done = train(config, workspace=folder / "workspace")
    print(f"loss after {done.steps} steps: {done.loss!r}")
