"""Estimates compared with published counts, with built models, and with steps that are run here."""

import math
import os
import re
from pathlib import Path

import pytest

from datasets.base.errors import InputError
from mae.config.load import load_config, parse_config
from mae.config.sections import ModelConfig
from mae.model.mae import MaskedAutoencoder
from mae.model.sizes import encoder_flops, mae_flops
from mae.model.vit import VisionTransformer
from mae.planning import core_rates, estimate
from mae.planning.estimate import FAILURE_DEVICE_HOURS, optimal_interval, parameter_count
from tests.mae.made_weights import SMALL

BASE = ModelConfig()
LARGE = ModelConfig(embed_dim=1024, depth=24, num_heads=16)
HUGE = ModelConfig(patch_size=14, embed_dim=1280, depth=32, num_heads=16)
JOB = {
    "task": "pretrain",
    "name": "job",
    "device": {"target": "Ascend", "ranks": 8},
    "pretrain": {"epochs": 800, "accum_iter": 8},
    "finetune": {"epochs": 100, "accum_iter": 4},
}


@pytest.mark.parametrize(
    ("model", "masked", "whole"),
    [  # GFLOP: 2 per multiplication, counted operator by operator by hand for 196, 196 and 256 patches
        pytest.param(BASE, 19.562, 35.13, id="B/16"),
        pytest.param(LARGE, 41.512, 123.1, id="L/16"),
        pytest.param(HUGE, 97.124, 334.6, id="H/14"),
    ],
)
def test_flops_of_the_published_models(model, masked, whole):
    assert mae_flops(model, 0.75) / 1e9 == pytest.approx(masked, abs=5e-4)
    assert encoder_flops(model) / 1e9 == pytest.approx(whole, rel=5e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"decoder_mlp_ratio": 2.0}, {"image_size": (16, 32)}, {"embed_dim": 32, "depth": 3, "head": "batch_norm"}],
)
def test_parameter_counts_are_those_of_the_models(changes):
    config = ModelConfig(**{**SMALL, "image_size": 16, **changes})

    def built(model):
        return sum(p.size for p in model.trainable_params())

    assert parameter_count(config) == built(MaskedAutoencoder(config))
    assert parameter_count(config, classes=7) == built(VisionTransformer(config, 7))


def test_the_published_job():
    made = estimate(parse_config(JOB, source="test"))
    expected = {  # (stage, name): value, relative tolerance
        ("pretrain", "effective batch"): (4096, 0),
        ("pretrain", "updates"): (800 * (1281167 // 4096), 0),
        ("pretrain", "time"): (113.2, 0.005),  # 800 * 1281167 / (8 * 314) s
        ("pretrain", "checkpoint"): (1.34, 0.001),
        ("finetune", "effective batch"): (1024, 0),
        ("finetune", "time"): (100 * 1281167 / (8 * 283) / 3600, 0.005),
    }
    for (stage, name), (value, tolerance) in expected.items():
        assert made.value(stage, name) == pytest.approx(value, rel=tolerance), (stage, name)


def test_a_probe_trains_its_head_only():
    """The state by hand: weights of a ViT-B classifier in both precisions; gradients, velocities, sums and averages."""
    probe = {"epochs": 90, "batch_size": 512, "accum_iter": 4, "ema": 0.999}
    job = {**JOB, "task": "linear", "pretrain": None, "finetune": None, "linear": probe}
    made, head = estimate(parse_config(job, source="test")), 1000 * 769
    assert made.value("linear", "state") == pytest.approx((86_567_656 * 6 + head * 16) / 1e9)
    one_block = 512 * (2 * 4 * 197 * 768 + 2 * (197 * 768 * (6 + 3 * 4) + 12 * 197**2))
    assert made.value("linear", "activations") == pytest.approx(one_block / 1e9)
    assert made.value("linear", "memory") == pytest.approx((86_567_656 * 6 + head * 16 + one_block) / 32e9)


def test_what_checkpoints_cost():
    """One for every 10 of 800 * 312 updates. Each has the moving average twice: to load the model and to resume."""
    recipe = {"epochs": 800, "accum_iter": 8, "ema": 0.999, "checkpoint_steps": 10, "checkpoint_epochs": 20}
    made = estimate(parse_config({**JOB, "finetune": None, "pretrain": recipe}, source="test"))
    count, size = 24_960, 111_655_680 * 20
    assert made.value("pretrain", "checkpoints") == count
    assert made.value("pretrain", "checkpoint") == pytest.approx(size / 1e9, rel=1e-3)
    assert made.value("pretrain", "expected loss") > count * size / 0.8e9 / 3600


@pytest.mark.parametrize(
    ("epochs", "every", "keep", "written", "kept"),
    [(800, 20, None, 40, 3), (800, 20, 50, 48, 18), (800, 20, 100, 40, 10), (10, 20, 1, 10, 10), (7, 2, 3, 5, 4)],
)
def test_how_many_checkpoints_there_are(epochs, every, keep, written, kept):
    recipe = {"epochs": epochs, "checkpoint_epochs": every, "keep_epochs": keep, "warmup_epochs": 1, "accum_iter": 8}
    made = estimate(parse_config({**JOB, "finetune": None, "pretrain": recipe}, source="test"))
    assert made.value("pretrain", "checkpoints") == written
    on_disk = made.value("pretrain", "checkpoints on disk") / made.value("pretrain", "checkpoint")
    assert on_disk == pytest.approx(kept)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*_vit_*.yaml")), ids=lambda path: path.stem)
def test_published_recipes_fit_a_910a(path):
    """And take as long as the comment at the head of the config says, for each length of pre-training."""
    config = load_config(path)
    made = estimate(config)
    assert made.value(config.task, "memory") < 0.9
    text = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    found = re.findall(r"([\d.,]+) h(?: for ([\d,]+))?[, ]", text.split("Expected time: ")[1].split("(published")[0])
    assert len(found) == (4 if config.task == "pretrain" else 1)
    for hours, epochs in found:
        share = int(epochs.replace(",", "")) / config.recipe.epochs if epochs else 1
        said = float(hours.replace(",", ""))
        assert said == pytest.approx(made.value(config.task, "time") * share, rel=0.015), (hours, epochs)


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        pytest.param({}, 1281167 + 50000, id="on a 910A, ImageNet"),
        pytest.param({"device": {"target": "CPU"}}, 7000, id="on a CPU, the shipped sample"),
    ],
)
def test_without_data_its_size_is_assumed(changes, images):
    job = {**JOB, "pretrain": None, "task": "finetune", "model": {**SMALL, "image_size": 16}, **changes}
    assert estimate(parse_config(job, source="test"), rate=100).value("data", "images") == images


def test_servers_share_the_work_and_their_failures_add_up():
    one, twelve = (
        estimate(parse_config(JOB, source="test"), rate=300),
        estimate(parse_config(JOB, source="test"), servers=12, rate=300),
    )
    assert twelve.value("pretrain", "effective batch") == 12 * 4096
    assert one.value("pretrain", "time") / twelve.value("pretrain", "time") == pytest.approx(12, rel=0.01)
    assert one.value("pretrain", "failures") == pytest.approx(twelve.value("pretrain", "failures"), rel=0.01)
    hours = one.value("pretrain", "time")
    assert one.value("pretrain", "failures") == pytest.approx(hours * 8 / FAILURE_DEVICE_HOURS)


def test_input_cores_are_those_of_this_machine():
    made, rates = estimate(parse_config(JOB, source="test"), rate=300), core_rates((224, 224), 0.2)
    assert made.value("pretrain", "input cores") == 300 / rates.trained
    assert made.value("data", "validate") == 1331167 / (rates.validated * len(os.sched_getaffinity(0))) / 3600
    assert 50 < rates.trained < rates.validated


def test_recomputing_blocks_takes_a_third_longer():
    plain, twice = (
        estimate(parse_config({**JOB, "compute": {"recompute": again}}, source="test")) for again in (False, True)
    )
    for task in ("pretrain", "finetune"):
        assert twice.value(task, "time") == pytest.approx(plain.value(task, "time") * 4 / 3)
        assert twice.value(task, "memory") < plain.value(task, "memory")


@pytest.mark.parametrize("compute", [{"dtype": "float32"}, {"decoder_float32": True}])
def test_a_910a_in_float32_needs_a_rate(compute):
    with pytest.raises(InputError, match="give --rate"):
        estimate(parse_config({**JOB, "finetune": None, "compute": compute}, source="test"))
    assert estimate(parse_config({**JOB, "finetune": None, "compute": compute}, source="test"), rate=9).figures


def test_the_best_interval_loses_least():
    """Compared with the sum of the costs of checkpoints and of repeated work, per second."""
    cost, between = 12.0, 40_000.0

    def lost(interval):
        return cost / interval + interval / 2 / between

    best = optimal_interval(cost, between)
    assert lost(best) <= min(lost(best * factor) for factor in (0.8, 0.95, 1.05, 1.25))
    assert best == pytest.approx(math.sqrt(2 * 12 * 40_000))


def test_on_a_cpu_steps_are_run(monkeypatch):
    monkeypatch.setattr("mae.planning.rate.SECONDS", 0.1)  # the minimum of steps decides
    small = {**SMALL, "image_size": 16, "depth": 1}
    job = {
        "task": "pretrain",
        "name": "tiny",
        "model": small,
        "pretrain": {"epochs": 3, "warmup_epochs": 1, "batch_size": 4, "accum_iter": 2},
        "finetune": {"epochs": 2, "warmup_epochs": 1, "batch_size": 4},
    }
    made = estimate(parse_config(job, source="test"), images=1000)
    assert made.value("pretrain", "updates") == 3 * (1000 // 8)
    rate = made.value("pretrain", "rate")
    assert made.value("pretrain", "time") == pytest.approx(3 * 125 * 8 / rate / 3600)
    assert 0.1 < made.value("pretrain", "measured memory") < 8
    assert made.value("finetune", "rate") > 0
    assert "mean of" in made.table()
