"""Learning rates of the published recipes."""

import pytest

from mae.schedule import base_lr, lr_at


@pytest.mark.parametrize(
    ("name", "blr", "batch_size", "ranks", "accum_iter", "lr"),
    [
        ("pretrain as published", 1.5e-4, 64, 64, 1, 2.4e-3),
        ("the same by accumulation on one server", 1.5e-4, 64, 8, 8, 2.4e-3),
        ("fine-tune ViT-B", 5e-4, 32, 32, 1, 2e-3),
        ("linear probe", 0.1, 512, 32, 1, 6.4),
    ],
)
def test_base_lr_counts_every_image_between_updates(name, blr, batch_size, ranks, accum_iter, lr):
    assert base_lr(blr, batch_size=batch_size, ranks=ranks, accum_iter=accum_iter) == pytest.approx(lr, rel=1e-12), name


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(0, 0.0), (20, 0.5), (40, 1.0), (420, 0.55), (800, 0.1), (230, 0.1 + 0.9 * 0.8535533905932737)],
)
def test_warm_up_then_half_a_cosine(epoch, lr):
    assert lr_at(epoch, lr=1.0, min_lr=0.1, warmup_epochs=40, epochs=800) == pytest.approx(lr, abs=1e-12)
