"""One update: clipping, moving average, dynamic loss scale and what it does with planted inf and NaN."""

import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mae.config.sections import ComputeConfig
from mae.device.context import float_status, setup
from mae.training import update as objective
from mae.training.optim import AdamW, LossScale
from mae.training.update import Accumulate, StepResult, Update

START = np.array([[0.5, -0.25], [1.0, 0.125]], np.float32)
GOOD = np.array([[1e-3, 2e-3], [-1e-3, 3e-3]], np.float32)


class Product(nn.Cell):
    """A loss whose gradient is the batch itself, in float16 as a layer's would be."""

    def __init__(self, dtype=ms.float32):
        super().__init__()
        self.w = Parameter(Tensor(START), name="w")
        self.dtype = dtype

    def construct(self, x):
        return (self.w.astype(self.dtype) * x.astype(self.dtype)).astype(ms.float32).sum()


class Logarithm(nn.Cell):
    """Its slope is that of a logarithm, which is not finite at 0; its value is the input."""

    def construct(self, x):
        return x

    def bprop(self, x, _out, dout):
        return (dout / x,)


class Steep(Product):
    """Finite where the batch is 0, and its slope is not."""

    def __init__(self, dtype=ms.float32):
        super().__init__(dtype)
        self.logarithm = Logarithm()

    def construct(self, x):
        return self.logarithm(self.w * x).sum()


@pytest.fixture(autouse=True)
def _cpu():
    setup("CPU", ranks=1)


class Run:
    """An update and what it reported. Runs with the same arguments share one compiled graph and start the same."""

    def __init__(self, loss=Product, dtype=ms.float32, **settings):
        self.loss, self.optimizer, self.update, start = built(loss, dtype, tuple(settings.items()))
        for parameter, value in start:
            parameter.set_data(Tensor(value))

    def step(self, x, lr=1e-2):
        return StepResult.read(self.update(Tensor(lr, ms.float32), Tensor(np.array(x, np.float32))))

    @property
    def state(self):
        return [p.asnumpy().copy() for p in (self.loss.w, *self.optimizer.state)]


@functools.cache
def built(loss, dtype, settings):
    """A loss, its optimiser and update, and the parameters of all with their first values."""
    loss = loss(dtype)
    optimizer = AdamW([loss.w], betas=(0.9, 0.95), weight_decay=0.05)
    update = Update(loss, optimizer, ranks=1, **{"accum_iter": 1, **dict(settings)})
    parameters = {id(p): p for p in [loss.w, *update.state, *update.loss_scale.get_parameters()]}
    return loss, optimizer, update, [(p, p.asnumpy().copy()) for p in parameters.values()]


def test_a_report_of_a_plain_step():
    report = Run().step(GOOD)
    assert report.loss == pytest.approx(float((START * GOOD).sum()), rel=1e-6)
    assert report.grad_norm == pytest.approx(float(np.linalg.norm(GOOD)), rel=1e-6)
    assert report[2:] == (1.0, 0, 0, False)


@pytest.mark.parametrize(
    ("name", "size", "clip", "factor"),
    [("longer than allowed", 10.0, 2.0, 0.2), ("shorter", 1.0, 2.0, 1.0), ("as long", 2.0, 2.0, 1.0)],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_clipping_shortens_all_gradients_together(name, size, clip, factor, dynamic):
    """As torch's clip_grad_norm_: the norm that is reported is the one before."""
    gradient = (GOOD / np.linalg.norm(GOOD) * size).astype(np.float32)
    run = Run(clip_grad=clip, dynamic_scale=dynamic)
    report = run.step(gradient)
    assert report.grad_norm == pytest.approx(size, rel=1e-6), name
    np.testing.assert_allclose(run.optimizer.moment1[0].asnumpy(), 0.1 * factor * gradient, rtol=2e-6, err_msg=name)


def test_moving_average():
    run, expected = Run(ema=0.9), START.astype(np.float64)
    for number in range(5):
        run.step(GOOD * (number + 1))
        expected = 0.9 * expected + 0.1 * run.loss.w.asnumpy()
    np.testing.assert_allclose(run.update.averages[0].asnumpy(), expected, rtol=0, atol=1e-7)
    assert np.abs(expected - run.loss.w.asnumpy()).max() > 1e-3


@pytest.mark.parametrize("dynamic", [False, True])
def test_accumulated_batches_are_one(dynamic):
    whole, cut = Run(dynamic_scale=dynamic), Run(accum_iter=2, dynamic_scale=dynamic)
    accumulate = Accumulate(cut.update)
    for number in range(4):
        parts = GOOD * (number + 1), GOOD * (number - 2)
        accumulate(Tensor(parts[0]))
        found, expected = cut.step(parts[1]), whole.step((parts[0] + parts[1]) / 2)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    for a, b in zip(cut.state, whole.state):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)


def test_an_overflow_is_skipped_counted_and_halves_the_scale():
    """2 * 65,536 and 2 * 32,768 are more than float16 holds, 2 * 16,384 is not."""
    run, plain = Run(dtype=ms.float16, dynamic_scale=True, ema=0.5), Run()
    before, two = run.state, np.full((2, 2), 2.0)
    for scale, overflows in ((32768.0, 1), (16384.0, 2)):
        report = run.step(two)
        assert (report.loss_scale, report.overflows, report.halted) == (scale, overflows, 0)
        assert np.isfinite(report.loss)
        for a, b in zip(run.state, before):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(run.update.averages[0].asnumpy(), START)
    report = run.step(two)
    plain.step(two)
    assert (report.loss_scale, report.overflows, report.halted) == (16384.0, 2, 0)
    for a, b in zip(run.state, plain.state):  # as if the skipped steps had not been
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_what_one_batch_overflows_another_does_not_inherit():
    run = Run(dtype=ms.float16, dynamic_scale=True, accum_iter=2)
    Accumulate(run.update)(Tensor(np.full((2, 2), 100, np.float32)))
    assert run.step(GOOD).overflows == 1
    report = run.step(GOOD)
    assert (report.overflows, report.halted) == (1, 0)
    assert report.grad_norm == pytest.approx(np.linalg.norm(GOOD) / 2, rel=1e-3)


class Late(Product):
    """Multiplies in float32, so that only the gradient passes through float16."""

    def construct(self, x):
        return (self.w.astype(ms.float16).astype(ms.float32) * x).sum()


@pytest.mark.parametrize(("dynamic", "norm"), [(False, 0.0), (True, 2e-8)])
def test_small_gradients_survive_half_precision(dynamic, norm):
    """1e-8 is zero in float16, and 65,536 times as much is not."""
    found = Run(Late, dynamic_scale=dynamic).step(np.full((2, 2), 1e-8)).grad_norm
    assert found == pytest.approx(norm, rel=1e-2)


def test_good_updates_double_the_scale(monkeypatch):
    monkeypatch.setattr(LossScale, "INTERVAL", 3)
    run = Run(functools.partial(Product), dynamic_scale=True)  # a graph of its own
    assert [run.step(GOOD).loss_scale / 65536 for _ in range(7)] == [1, 1, 2, 2, 2, 4, 4]
    assert LossScale.LARGEST == 2.0**24


@pytest.mark.parametrize(
    ("name", "loss", "batch", "skipped"),
    [
        ("NaN in the batch", Product, [[np.nan, 1], [1, 1]], 0),
        ("inf in the batch", Product, [[np.inf, 1], [1, 1]], 0),
        ("a slope that no scale makes finite", Steep, [[0, 1], [1, 1]], 16),
    ],
)
def test_what_is_no_overflow_halts(name, loss, batch, skipped):
    run = Run(loss, dynamic_scale=True)
    run.step(np.ones((2, 2)))
    before = run.state
    reports = [run.step(batch) for _ in range(skipped + 1)] + [run.step(np.ones((2, 2)))]
    assert [r.halted for r in reports] == [0] * skipped + [1, 2], name
    assert reports[-1].overflows == skipped
    for a, b in zip(run.state, before):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_without_a_scale_every_overflow_halts():
    run = Run(Steep)
    assert run.step(np.ones((2, 2))).halted == 0
    assert run.step([[0, 1], [1, 1]])[2:] == (1.0, 0, 1, False)


class Register:
    """A saturating device's flags: raised by a step, kept until they are cleared, read as NPUGetFloatStatusV2 does."""

    def __init__(self):
        self.flags = np.zeros(8, np.int32)

    def operator(self, call):
        return ops.Custom(call, lambda shape: shape, lambda dtype: dtype, "pyfunc")

    def clear(self, before):
        self.flags[:] = 0
        return self.flags.copy()

    def read(self, after):
        return self.flags.copy()

    def multiplied(self, x):
        """The batch, as a step that is too large for this device leaves it: finite, with a flag raised."""
        self.flags[3] |= np.abs(x).max() > 1000
        return np.clip(x, -1000, 1000)


class Saturating(Product):
    def __init__(self, multiplied, dtype):
        super().__init__(dtype)
        self.multiplied = multiplied

    def construct(self, x):
        return (self.w * ops.stop_gradient(self.multiplied(x))).sum()


@pytest.fixture
def register(monkeypatch):
    """In place of a 910A's, with operators that a CPU has."""
    register = Register()
    operators = register.operator(register.clear), register.operator(register.read)
    monkeypatch.setattr(objective, "float_status", lambda: operators)
    return register


def saturating(register, **settings):
    return Run(functools.partial(Saturating, register.operator(register.multiplied)), **settings)


def test_what_a_device_saturates_is_an_overflow(register):
    """No number tells of it: loss, gradient and norm are finite."""
    run, plain = saturating(register, dynamic_scale=True), Run()
    register.flags[0] = 1  # of something before the step, which is no fault of its own
    assert run.step(GOOD).overflows == plain.step(GOOD).overflows == 0
    before = run.state
    report = run.step(np.full((2, 2), 2000.0))
    assert np.isfinite(report[:2]).all()
    assert report[2:] == (32768.0, 1, 0, True)
    for a, b in zip(run.state, before):
        np.testing.assert_array_equal(a, b)
    run.step(GOOD)
    plain.step(GOOD)
    for a, b in zip(run.state, plain.state):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_saturation_in_one_accumulated_batch_skips_the_update_and_no_other(register):
    run = saturating(register, dynamic_scale=True, accum_iter=2)
    Accumulate(run.update)(Tensor(np.full((2, 2), 2000, np.float32)))
    assert run.step(GOOD).overflows == 1
    Accumulate(run.update)(Tensor(GOOD))
    assert run.step(GOOD)[3:] == (1, 0, False)


def test_saturation_that_no_scale_mends_halts(register):
    run = saturating(register, dynamic_scale=True)
    reports = [run.step(np.full((2, 2), 2000.0)) for _ in range(18)]
    assert [(r.overflows, r.halted) for r in reports[-3:]] == [(16, 0), (16, 1), (16, 2)]
    assert saturating(register).step(np.full((2, 2), 2000.0)).halted == 1


def test_a_910a_has_such_flags_and_a_cpu_tells_by_inf(monkeypatch):
    assert float_status() is None
    monkeypatch.setattr(ms, "get_context", lambda key: {"device_target": "Ascend"}[key])
    assert [operator.name for operator in float_status()] == ["NPUClearFloatStatusV2", "NPUGetFloatStatusV2"]


@pytest.mark.parametrize(
    ("compute", "mode"),
    [
        ({}, "allow_fp32_to_fp16"),
        ({"dtype": "float16"}, "allow_fp32_to_fp16"),
        ({"decoder_float32": True}, "must_keep_origin_dtype"),
        ({"dtype": "float32"}, "must_keep_origin_dtype"),
    ],
)
def test_an_npu_multiplies_float32_where_the_config_says_so(monkeypatch, compute, mode):
    """As MindSpore is told, of which its CPU build knows the keys and values."""
    told = {}
    monkeypatch.setattr(ms, "set_context", told.update)
    monkeypatch.setenv("DEVICE_ID", "5")
    assert setup("Ascend", ranks=1, compute=ComputeConfig(**compute)) == 0
    assert told == {
        "mode": ms.GRAPH_MODE,
        "device_target": "Ascend",
        "device_id": 5,
        "ascend_config": {"precision_mode": mode},
    }
    monkeypatch.undo()
    ms.set_context(ascend_config=told["ascend_config"])
