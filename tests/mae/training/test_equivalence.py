"""The same update however it is cut: over ranks, over accumulated batches, or in one piece; on augmented images."""

import json

import numpy as np
import pytest

from datasets.batches import Batch
from mae.config.sections import Config
from mae.device.context import setup
from mae.runs.model_file import load_weights
from mae.train import train
from mae.training.task import Place, build_job
from tests.mae.conftest import TINY

pytestmark = pytest.mark.slow

SIDE = 28
EPOCHS, STEPS = 9, 54  # 6 updates of 32 images an epoch


def job(records, *, ranks=1, **recipe):
    recipe = {"epochs": EPOCHS, "batch_size": 32, "blr": 8e-3, "warmup_epochs": 2, **recipe}
    values = {"data": {"workers": 1, "records": str(records)}, "device": {"ranks": ranks}}
    return Config.model_validate({**TINY, **values, "pretrain": {**recipe, "checkpoint_epochs": EPOCHS}})


def curve(run):
    lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    return {key: np.array([line[key] for line in lines]) for key in ("step", "loss", "grad_norm", "lr")}


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory):
    """One rank, one batch per update."""
    return train(job(records), workspace=tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("name", "ranks", "recipe"),
    [
        ("two batches accumulated", 1, {"batch_size": 16, "accum_iter": 2}),
        ("two ranks with half the batch", 2, {"batch_size": 16}),
        ("two ranks that accumulate", 2, {"batch_size": 4, "accum_iter": 4}),  # an epoch's images are 25 of these
    ],
)
def test_the_loss_curve_is_that_of_one_whole_batch(whole, records, tmp_path, name, ranks, recipe):
    cut = train(job(records, ranks=ranks, **recipe), workspace=tmp_path)
    expected, found = curve(whole), curve(cut)
    assert expected["step"][-1] == found["step"][-1] == STEPS, name
    np.testing.assert_array_equal(found["step"], expected["step"])
    np.testing.assert_array_equal(found["lr"], expected["lr"])
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-3, err_msg=name)
    assert expected["loss"][-1] < 0.95 * expected["loss"][0]


@pytest.mark.parametrize(
    ("name", "ranks", "parts"), [("ranks", 2, 1), ("parts", 1, 2), ("ranks and parts", 2, 3), ("one", 1, 1)]
)
def test_an_image_has_the_same_mask(name, ranks, parts):
    """Rank r has every `ranks`-th image of a part from the r-th on, as its batches do (test_batches.py)."""
    setup("CPU", ranks=1)
    images, whole = 12, []
    for of_ranks, of_parts in ((1, 1), (ranks, parts)):
        rows = images // of_ranks // of_parts
        batch = Batch(np.zeros((rows, SIDE, SIDE, 3), np.uint8), np.zeros(rows), np.zeros(rows))
        config = job("none", ranks=of_ranks)
        masks = np.zeros((of_parts, rows, of_ranks, 16), np.int32)
        for rank in range(of_ranks):
            inputs = build_job(config, classes=[]).inputs
            for part in range(of_parts):
                masks[part, :, rank] = inputs(batch, Place(3, 2, part, rank))[2]
        whole.append(masks.reshape(images, 16))
    np.testing.assert_array_equal(*whole)
    assert len(np.unique(whole[0], axis=0)) == images, name


def test_an_update_of_one_image_less_is_another(whole, records, tmp_path):
    """The tolerance above tells updates apart."""
    other = train(job(records, batch_size=31), workspace=tmp_path)
    assert np.abs(curve(other)["loss"] / curve(whole)["loss"] - 1).max() > 1e-3


def test_moving_average_and_clipping_in_a_run(records, tmp_path):
    """Both are written, resumed with, and make a difference."""
    run = train(job(records, ema=0.9, clip_grad=0.05), workspace=tmp_path)
    weights, averages = (load_weights(run.checkpoint.with_name(n)) for n in ("model.safetensors", "ema.safetensors"))
    assert weights.keys() == averages.keys()
    np.testing.assert_array_equal(averages["pos_embed"], weights["pos_embed"])  # not trained
    moved = np.abs(averages["decoder_pred.weight"] - weights["decoder_pred.weight"]).max()
    assert 1e-5 < moved < 1e-1
    saved = load_weights(run.checkpoint.with_name("optimizer.safetensors"))
    np.testing.assert_array_equal(saved["ema.decoder_pred.weight"], averages["decoder_pred.weight"])
    assert saved["adam_updates"] == STEPS
