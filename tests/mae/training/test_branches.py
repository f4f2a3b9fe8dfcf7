"""Stochastic depth: what is dropped is drawn on the host, as a function of seed and place."""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from datasets.batches import Batch
from mae.config.sections import ComputeConfig
from mae.device.context import setup
from mae.model.vit import VisionTransformer
from mae.training.task import Place, _drawn, branches, build_job
from tests.mae.made_runs import with_


def test_rates_rise_and_the_expectation_stays():
    keep = branches(np.random.default_rng(0).random((20_000, 6)), 0.4)
    assert keep.shape == (20_000, 3, 2)
    for block, rate in enumerate((0.0, 0.2, 0.4)):
        assert set(np.unique(keep[:, block])) <= {0.0, np.float32(1 / (1 - rate))}
        np.testing.assert_allclose((keep[:, block] == 0).mean(), rate, atol=0.01)
        np.testing.assert_allclose(keep[:, block].mean(), 1, atol=0.02)


def test_an_image_drops_the_same_however_the_update_is_cut():
    whole = _drawn(12, 1, 6, Place(1, 2, 0), [3, 1, 2])
    cut = np.zeros((2, 3, 2, 6))
    for part in range(2):
        for rank in range(2):
            cut[part, :, rank] = _drawn(3, 2, 6, Place(1, 2, part, rank), [3, 1, 2])
    np.testing.assert_array_equal(cut.reshape(12, 6), whole)


def test_a_dropped_branch_leaves_its_image_as_it_was(tiny):
    setup("CPU", ranks=1)
    model = VisionTransformer(tiny.model, 3, compute=ComputeConfig())
    x = Tensor(np.random.default_rng(1).normal(size=(2, 5, 16)).astype(np.float32))
    keep = Tensor(np.array([[0, 0], [1, 1]], np.float32))
    found, plain = model.blocks[0](x, keep).asnumpy(), model.blocks[0](x).asnumpy()
    np.testing.assert_array_equal(found[0], x.asnumpy()[0])
    np.testing.assert_allclose(found[1], plain[1], rtol=1e-6)
    assert np.abs(plain[0] - found[0]).max() > 1e-3


def test_fine_tuning_hands_them_to_the_model(tiny):
    setup("CPU", ranks=1)
    job = with_(tiny, finetune={"drop_path": 0.5}, model={"depth": 2}).model_copy(update={"task": "finetune"})
    built = build_job(job, classes=["a", "b"])
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), np.uint8)
    arrays = built.inputs(Batch(images, np.zeros(4, np.int32), np.arange(4)), Place(0, 0, 0))
    assert [array.shape for array in arrays] == [(4, 28, 28, 3), (4,), (4, 2, 2), (28, 28)]
    built.model.set_train(True)
    for parameter in built.model.get_parameters():  # a fresh head gives the same for all images
        if parameter.name == "head.weight":
            parameter.set_data(Tensor(np.random.default_rng(2).normal(size=parameter.shape), ms.float32))
    arrays[2] = np.ones((4, 2, 2), np.float32)
    losses = [float(built.loss(*map(Tensor, arrays)).asnumpy())]
    arrays[2] = np.zeros((4, 2, 2), np.float32)
    losses.append(float(built.loss(*map(Tensor, arrays)).asnumpy()))
    assert abs(losses[0] - losses[1]) > 1e-3
