"""Learning rates of the published recipes against formulas written independently, and torch's scheduler."""

import math

import numpy as np
import pytest

from mae.config.sections import PretrainConfig
from mae.training.schedule import lr_at


@pytest.mark.parametrize(
    ("name", "blr", "batch_size", "ranks", "accum_iter", "lr"),
    [
        ("pretrain as published", 1.5e-4, 64, 64, 1, 2.4e-3),
        ("the same by accumulation on one server", 1.5e-4, 64, 8, 8, 2.4e-3),
        ("fine-tune ViT-B", 5e-4, 32, 32, 1, 2e-3),
        ("fine-tune ViT-L", 1e-3, 32, 8, 4, 4e-3),
        ("linear probe", 0.1, 512, 32, 1, 6.4),
    ],
)
def test_base_lr_counts_every_image_between_updates(name, blr, batch_size, ranks, accum_iter, lr):
    recipe = PretrainConfig(blr=blr, batch_size=batch_size, accum_iter=accum_iter)
    assert recipe.lr(ranks=ranks) == pytest.approx(lr, rel=1e-12), name


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(0, 0.0), (20, 0.5), (40, 1.0), (420, 0.55), (800, 0.1), (230, 0.1 + 0.9 * 0.8535533905932737)],
)
def test_warm_up_then_half_a_cosine(epoch, lr):
    assert lr_at(epoch, lr=1.0, min_lr=0.1, warmup_epochs=40, epochs=800) == pytest.approx(lr, abs=1e-12)


RECIPES = [
    ("pretrain, 800 epochs", 2.4e-3, 0.0, 40, 800, 312),
    ("pretrain, 300 epochs", 2.4e-3, 0.0, 40, 300, 312),
    ("fine-tune B", 2e-3, 1e-6, 5, 100, 1251),
    ("linear probe", 6.4, 0.0, 10, 90, 78),
    ("warm-up of half an epoch", 1e-3, 1e-5, 0.5, 3, 7),
    ("no warm-up", 1e-3, 0.0, 0, 10, 20),
]


def per_iteration(recipe):
    """Every rate of a run, as the engine asks for them."""
    _, lr, min_lr, warmup, epochs, steps = recipe
    settings = {"lr": lr, "min_lr": min_lr, "warmup_epochs": warmup, "epochs": epochs}
    return np.array([lr_at(epoch + step / steps, **settings) for epoch in range(epochs) for step in range(steps)])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r[0])
def test_every_iteration_equals_the_cosine_in_steps(recipe):
    """Loshchilov & Hutter 2017, eq. 5, by updates instead of epochs, with (1 + cos 2x) / 2 = cos(x)^2."""
    _, lr, min_lr, warmup, epochs, steps = recipe
    total, ramp, t = epochs * steps, warmup * steps, np.arange(epochs * steps)
    cosine = min_lr + (lr - min_lr) * np.cos(np.pi * (t - ramp) / (2 * (total - ramp))) ** 2
    expected = np.where(t < ramp, lr * t / max(ramp, 1e-9), cosine)
    np.testing.assert_allclose(per_iteration(recipe), expected, rtol=1e-7, atol=1e-13 * lr)


@pytest.mark.parity
@pytest.mark.parametrize("recipe", RECIPES[-2:], ids=lambda r: r[0])
def test_every_iteration_equals_torch(recipe):
    torch = pytest.importorskip("torch")
    _, lr, min_lr, warmup, epochs, steps = recipe
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    ramp, total = warmup * steps, epochs * steps

    def factor(t):
        if t < ramp:
            return t / ramp
        return (min_lr + (lr - min_lr) * (1 + math.cos(math.pi * (t - ramp) / (total - ramp))) / 2) / lr

    scheduler, found = torch.optim.lr_scheduler.LambdaLR(optimizer, factor), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(per_iteration(recipe), found, rtol=1e-7)


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("by epochs, and the last", {"checkpoint_epochs": 4}, [12, 24, 30]),
        ("by updates too", {"checkpoint_epochs": 10, "checkpoint_steps": 7}, [7, 14, 21, 28, 30]),
        ("what shall stay is written", {"checkpoint_epochs": 4, "keep_epochs": 3}, [9, 12, 18, 24, 27, 30]),
    ],
)
def test_when_checkpoints_are_due(name, settings, steps):
    recipe = PretrainConfig(epochs=10, warmup_epochs=1, **settings)
    assert [step for step in range(1, 31) if recipe.checkpoint_due(step, 3)] == steps, name
