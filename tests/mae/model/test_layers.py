"""GELU: finite with a finite gradient over all of float16, and no number on the way that an NPU would saturate."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from scipy.special import erf, expit

from mae.device.context import setup
from mae.model import layers
from mae.model.layers import Gelu, TanhGelu

CELLS = [("exact", Gelu), ("tanh", TanhGelu)]
SLOPE_ERROR = 1e-2  # phi is kept in float16 for the gradient
PATTERNS = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
ALL = PATTERNS[np.isfinite(PATTERNS)]  # -65,504 to 65,504


class Npu:
    """What GELU uses of `mindspore.ops`, as CANN computes it (impl/dynamic/sigmoid.py and erf.py)."""

    exp, square, maximum = np.exp, np.square, np.maximum

    @staticmethod
    def erf(x):
        return erf(x.astype(np.float32))

    @staticmethod
    def sigmoid(u):
        return 1 / (1 + np.exp(-u))


class Value(nn.Cell):
    def __init__(self, gelu):
        super().__init__()
        self.gelu = gelu

    def construct(self, x):
        y, _ = self.gelu(x)
        return y


@pytest.mark.parametrize(("name", "cell"), CELLS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_nothing_overflows_on_an_npu(monkeypatch, name, cell, dtype):
    monkeypatch.setattr(layers, "ops", Npu)
    monkeypatch.setattr(layers, "ms", np)  # for float32
    x = ALL.astype(dtype)
    with np.errstate(over="raise", invalid="raise"):
        y, phi = cell.construct(None, x)
        (slope,) = cell.bprop(None, x, (y, phi), (np.ones_like(x), None))
    assert y.dtype == phi.dtype == slope.dtype == dtype, name
    assert np.isfinite(y).all()
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("form", ["x * x", "sigmoid(x)"])
def test_such_an_overflow_is_seen(form):
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        ALL * ALL if form == "x * x" else Npu.sigmoid(ALL)


@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_half_precision_is_as_exact_as_its_type(name, cell):
    """Values and gradients of all finite numbers, against float64."""
    setup("CPU", ranks=1)
    y, slope = (t.asnumpy() for t in ms.value_and_grad(Value(cell()))(Tensor(ALL)))
    x = ALL.astype(np.float64)
    if cell is Gelu:
        phi, d_phi = 0.5 + 0.5 * erf(x / np.sqrt(2)), np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    else:
        c = 2 * np.sqrt(2 / np.pi)
        phi = expit(c * (x + 0.044715 * x**3))
        d_phi = phi * (1 - phi) * c * (1 + 3 * 0.044715 * x**2)
    np.testing.assert_allclose(y, x * phi, rtol=1e-3, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(slope, phi + x * d_phi, rtol=0, atol=SLOPE_ERROR, err_msg=name)
