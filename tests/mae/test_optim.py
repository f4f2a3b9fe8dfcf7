"""AdamW and layer ids against the published formulas, written out in NumPy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mae.device import setup
from mae.optim import AdamW, layer_id


def torch_adamw(value, gradients, lr, betas, weight_decay, eps=1e-8):
    """torch.optim.AdamW in float64: decoupled decay, bias-corrected moments, eps outside the correction."""
    m, v = np.zeros_like(value), np.zeros_like(value)
    for t, gradient in enumerate(gradients, start=1):
        value = value * (1 - lr * weight_decay)
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        value = value - lr * m_hat / (np.sqrt(v_hat) + eps)
    return value


@pytest.mark.parametrize(
    ("name", "shape", "scale", "gradient_size"),
    [
        ("a matrix decays", (3, 4), 1.0, 1.0),
        ("a bias does not", (5,), 1.0, 1.0),
        ("layer decay scales rate and decay", (2, 3), 0.25, 1.0),
        ("gradients as small as eps", (4, 4), 1.0, 1e-7),
    ],
)
def test_adamw_equals_torch(name, shape, scale, gradient_size):
    setup("CPU", ranks=1)
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape)
    gradients = [rng.standard_normal(shape) * gradient_size for _ in range(5)]
    parameter = Parameter(Tensor(start, ms.float32), name="p")
    optimizer = AdamW([parameter], betas=(0.9, 0.95), weight_decay=0.1, scales=[scale])
    for t, gradient in enumerate(gradients, start=1):
        optimizer((Tensor(gradient, ms.float32),), Tensor(0.01, ms.float32), Tensor(1.0, ms.float32))
    decay = 0.1 if len(shape) > 1 else 0.0
    expected = torch_adamw(start, gradients, 0.01 * scale, (0.9, 0.95), decay)
    np.testing.assert_allclose(parameter.asnumpy(), expected, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("cls_token", 0),
        ("pos_embed", 0),
        ("patch_embed.proj.weight", 0),
        ("blocks.0.norm1.weight", 1),
        ("blocks.11.mlp.fc2.bias", 12),
        ("fc_norm.weight", 13),
        ("head.weight", 13),
    ],
)
def test_layer_ids_of_a_vit_b(name, layer):
    assert layer_id(name, depth=12) == layer
