"""ViT-B/16 on this CPU against eager torch running Hugging Face's model: pre-training step and inference, float32.

    python -m tests.benchmarks.bench_vit_b        needs torch and transformers (`make parity` installs them)

Both sides run in turn in processes of their own, with as many threads as there are cores: ROUNDS rounds of STEPS timed
calls each after WARM_UP calls (MindSpore tries out thread counts in the first five). Prints medians, minima, maxima and
n, and each side's share of the bare float32 matrix-product rate (2048 x 2048, measured in the same rounds by the same
framework). Not a test: no number is checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np

WARM_UP, STEPS, ROUNDS = 6, 5, 2
BATCH = 8
# GFLOP of the matrix products per image, 2 per multiply-add (He et al.'s ViT-B/16, 49 of 196 patches visible):
# forward 19.56; the backward pass costs twice as much, less the patch embedding's input gradient: 58.46 in all
GFLOP = {"pretrain step": 58.46, "classify": 35.13}
CASES = ["matmul", "pretrain step", "classify 1", "classify 32"]


def timed(call: Callable[[], object]) -> list[float]:
    """Seconds of STEPS calls after those that warm up."""
    times = []
    for _ in range(WARM_UP + STEPS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times[WARM_UP:]


def images(batch: int) -> np.ndarray:
    """Normalised random images (N, 3, 224, 224) float32."""
    return np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)


def run_maeflow(case: str) -> list[float]:
    """Times of one case in MindSpore."""
    import mindspore as ms
    from mindspore import Tensor, ops

    from mae.config.sections import ModelConfig
    from mae.device.context import setup
    from mae.masking import ids_from_noise
    from mae.model.mae import MaskedAutoencoder
    from mae.model.vit import VisionTransformer
    from mae.training.optim import AdamW
    from mae.training.update import Update

    setup("CPU", ranks=1)
    if case == "matmul":
        a, product = Tensor(np.ones((2048, 2048), np.float32)), ops.MatMul()
        return timed(lambda: product(a, a).asnumpy())
    if case.startswith("classify"):
        classifier = VisionTransformer(ModelConfig(pool="cls"), 1000)
        classifier.set_train(False)
        x = Tensor(images(int(case.split()[1])))
        return timed(lambda: classifier(x).asnumpy())
    model = MaskedAutoencoder(ModelConfig())
    inputs = [Tensor(images(BATCH)), *map(Tensor, ids_from_noise(np.random.default_rng(0).random((BATCH, 196)), 0.75))]
    optimizer = AdamW(model.trainable_params(), betas=(0.9, 0.95), weight_decay=0.05)
    update = Update(model, optimizer, ranks=1, accum_iter=1)
    return timed(lambda: update(Tensor(1e-4, ms.float32), *inputs).asnumpy())


def run_torch(case: str) -> list[float]:
    """Times of one case in eager torch."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTMAEForPreTraining

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if case == "matmul":
        a = torch.ones(2048, 2048)
        return timed(lambda: a @ a)
    if case.startswith("classify"):
        classifier = ViTForImageClassification(ViTConfig(num_labels=1000)).eval()
        x = torch.from_numpy(images(int(case.split()[1])))
        with torch.inference_mode():
            return timed(lambda: classifier(x).logits)
    model = ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=True)).train()
    x = torch.from_numpy(images(BATCH))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def step() -> None:
        optimizer.zero_grad()
        model(x).loss.backward()
        optimizer.step()

    return timed(step)


def main() -> None:
    """Run all cases in turn and print a line each."""
    wanted = sys.argv[1:] or CASES
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for case in wanted:
            for side in ("maeflow", "torch"):
                command = [sys.executable, "-m", "tests.benchmarks.bench_vit_b", "--one", side, case]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found.setdefault((case, side), []).extend(json.loads(output.splitlines()[-1]))
    for case in wanted:
        for side in ("maeflow", "torch"):
            times = found[case, side]
            spread = f"median {median(times):7.3f} s   min {min(times):7.3f}   max {max(times):7.3f}   n {len(times)}"
            print(f"{case:18s} {side:8s} {spread}{_share(case, side, found)}")
        ratio = median(found[case, "torch"]) / median(found[case, "maeflow"])
        print(f"{case:18s} torch's time over maeflow's {ratio:.2f}")


def _share(case: str, side: str, found: dict[tuple[str, str], list[float]]) -> str:
    """GFLOP/s, and its share of the bare matrix-product rate where that was measured."""
    if case == "matmul":
        return f"   {2 * 2.048**3 / median(found[case, side]):.0f} GFLOP/s"
    name, _, number = case.partition(" ") if case.startswith("classify") else (case, "", str(BATCH))
    rate = GFLOP[name] * int(number) / median(found[case, side])
    share = ""
    if ("matmul", side) in found:
        share = f", {100 * rate * median(found['matmul', side]) / (2 * 2.048**3):.0f} % of the bare matrix product"
    return f"   {rate:.0f} GFLOP/s{share}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run = {"maeflow": run_maeflow, "torch": run_torch}[sys.argv[2]]
        print(json.dumps(run(sys.argv[3])))
    else:
        main()
