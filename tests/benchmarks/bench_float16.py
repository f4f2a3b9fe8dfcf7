"""Loss of ViT-B on the demo's images over 200 steps, float16 matrix products against float32, both emulated on the CPU.

    python -m tests.benchmarks.bench_float16 RECORDS      the demo's workspace/records/<name>-<digest>

Prints both losses wherever the training loop logs them, and the largest relative difference. Ten minutes on two cores.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

VIT_B = {
    "model.embed_dim": 768,
    "model.depth": 12,
    "model.num_heads": 12,
    "model.decoder_embed_dim": 512,
    "model.decoder_depth": 8,
    "model.decoder_num_heads": 16,
    "model.gelu": "exact",
    "device.ranks": 1,
    "pretrain.epochs": 1,
    "pretrain.warmup_epochs": 0.2,
    "pretrain.batch_size": 30,  # 6,000 images / 30 = 200 steps
    "pretrain.blr": 1.5e-3,
}


def losses(records: str, dtype: str) -> dict[int, float]:
    """Loss by step of one run."""
    from mae.config.load import load_config
    from mae.train import train

    overrides = [f"{key}={value}" for key, value in VIT_B.items()]
    config = load_config("configs/demo.yaml", [*overrides, f"data.records={records}", f"compute.dtype={dtype}"])
    with tempfile.TemporaryDirectory() as workspace:
        run = train(config, workspace=Path(workspace))
        lines = (run.run_dir / "metrics.jsonl").read_text().splitlines()
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def main() -> None:
    """Run both and compare."""
    expected, found = losses(sys.argv[1], "float32"), losses(sys.argv[1], "float16")
    for step, loss in expected.items():
        print(
            f"step {step:4d}   float32 {loss:.5f}   float16 {found[step]:.5f}   {100 * (found[step] / loss - 1):+.3f} %"
        )
    worst = max(abs(found[step] / loss - 1) for step, loss in expected.items())
    print(f"largest difference {100 * worst:.3f} % over {len(expected)} logged steps of {max(expected)}")


if __name__ == "__main__":
    main()
