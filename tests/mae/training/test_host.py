"""What the host does per step: what it sends to the device, and how often it waits for it."""

import mindspore as ms
import numpy as np
import pytest

from mae.config.load import load_config
from mae.runs.run import Run
from mae.training import engine

READS = ("asnumpy", "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__")


def test_what_a_step_costs_the_host(tiny_yaml, tmp_path, monkeypatch):
    """uint8 pixels, two index arrays and the learning rate go out; one result in LOG_STEPS comes back."""
    run = Run(tmp_path, load_config(tiny_yaml, ["pretrain.checkpoint_epochs=4"]))
    training, sent, waits = engine.Engine(run, None)._steps(), [], []
    next(training)  # compiles

    def tensor(data, *dtype):
        array = np.asarray(data, np.float32) if dtype else data
        sent.append((array.dtype.name, array.shape))
        return ms.Tensor(data, *dtype)

    def counted(name, read):
        def method(self, *arguments):
            waits.append(name)
            return read(self, *arguments)

        return method

    monkeypatch.setattr(engine, "Tensor", tensor)
    for name in filter(lambda name: hasattr(ms.Tensor, name), READS):
        monkeypatch.setattr(ms.Tensor, name, counted(name, getattr(ms.Tensor, name)))
    for step in range(2, 31):
        sent.clear()
        waits.clear()
        next(training)
        reading = step % engine.LOG_STEPS == 0 or step % 12 == 0  # an epoch has 12 steps
        assert waits == ["asnumpy"] * reading, step
        assert sent == [("uint8", (16, 28, 28, 3)), ("int32", (16, 4)), ("int32", (16, 16)), ("float32", ())]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("a step", lambda result: result), ("a wait", lambda result: result.asnumpy())],
)
def test_the_count_above_sees_waits(monkeypatch, name, blocks):
    seen = []
    read = ms.Tensor.asnumpy
    monkeypatch.setattr(ms.Tensor, "asnumpy", lambda self: seen.append(1) or read(self))
    blocks(ms.Tensor(np.ones(3, np.float32)) + 1)
    assert bool(seen) == (name == "a wait")
