"""AdamW, LARS, parameter groups and layer decay against the published formulas, written out in NumPy float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mae.config.sections import Config
from mae.device.context import setup
from mae.model.vit import VisionTransformer
from mae.training.optim import LARS, AdamW, layer_id, layer_scales


@pytest.fixture(autouse=True)
def _cpu():
    setup("CPU", ranks=1)


def scalar(value):
    return Tensor(value, ms.float32)


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


ADAMW = [
    ("a matrix decays", (3, 4), (0.9, 0.95), 1.0, 1.0, 5),
    ("a bias does not", (5,), (0.9, 0.95), 1.0, 1.0, 5),
    ("layer decay scales rate and decay", (2, 3), (0.9, 0.95), 0.25, 1.0, 5),
    ("gradients as small as eps", (4, 4), (0.9, 0.95), 1.0, 1e-7, 5),
    ("fine-tuning's betas, first step", (4, 4), (0.9, 0.999), 1.0, 1.0, 1),
    ("fine-tuning's betas", (4, 4), (0.9, 0.999), 1.0, 1.0, 20),
    ("no momentum", (4, 4), (0.0, 0.5), 1.0, 1.0, 20),
]


def adamw_case(shape, betas, scale, gradient_size, steps):
    """Start, gradients and where our optimiser arrives. Values stay below 1; each step rounds them by up to 3e-8."""
    rng = np.random.default_rng(0)
    start = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
    gradients = [(rng.standard_normal(shape) * gradient_size).astype(np.float32) for _ in range(steps)]
    parameter = Parameter(Tensor(start), name="p")
    optimizer = AdamW([parameter], betas=betas, weight_decay=0.1, scales=[scale])
    for gradient in gradients:
        optimizer((Tensor(gradient),), scalar(1e-3), scalar(1.0))
    return start, gradients, parameter.asnumpy()


@pytest.mark.parametrize(("name", "shape", "betas", "scale", "gradient_size", "steps"), ADAMW)
def test_adamw_equals_the_formula(name, shape, betas, scale, gradient_size, steps):
    start, gradients, found = adamw_case(shape, betas, scale, gradient_size, steps)
    decay = 0.1 if len(shape) > 1 else 0.0
    gradients = [g.astype(np.float64) for g in gradients]
    expected = torch_adamw(start.astype(np.float64), gradients, np.float32(1e-3) * scale, betas, decay)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.sqrt(steps), err_msg=name)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "shape", "betas", "scale", "gradient_size", "steps"), ADAMW)
def test_adamw_equals_torch(name, shape, betas, scale, gradient_size, steps):
    torch = pytest.importorskip("torch")
    start, gradients, found = adamw_case(shape, betas, scale, gradient_size, steps)
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    decay = 0.1 if len(shape) > 1 else 0.0
    optimizer = torch.optim.AdamW([parameter], lr=1e-3 * scale, betas=betas, weight_decay=decay)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    np.testing.assert_allclose(found, parameter.detach().numpy(), rtol=0, atol=1e-7 * np.sqrt(steps), err_msg=name)


def upstream_lars(value, gradients, lrs, momentum, trust, weight_decay):
    """LARS as upstream's linear probe has it: decay, trust ratio, momentum, learning rate, in this order."""
    velocity = np.zeros_like(value)
    for gradient, lr in zip(gradients, lrs):
        step = gradient
        if value.ndim > 1:
            step = step + weight_decay * value
            w, g = np.linalg.norm(value), np.linalg.norm(step)
            if w > 0 and g > 0:
                step = step * (trust * w / g)
        velocity = momentum * velocity + step
        value = value - lr * velocity
    return value


def paper_lars(value, gradients, lrs, momentum, trust, weight_decay):
    """You et al. 2017, algorithm 1, where the decay is in the norm and the rate in the velocity: equal at one rate."""
    velocity = np.zeros_like(value)
    for gradient, lr in zip(gradients, lrs):
        local = trust * np.linalg.norm(value) / np.linalg.norm(gradient + weight_decay * value)
        velocity = momentum * velocity + lr * local * (gradient + weight_decay * value)
        value = value - velocity
    return value


LARS_CASES = [
    ("the linear probe's weight", (10, 16), 1.0, 0.0, [6.4] * 3, 0.9),
    ("with decay", (10, 16), 1.0, 0.1, [6.4] * 3, 0.9),
    ("a bias is not scaled and does not decay", (10,), 0.01, 0.1, [1.0] * 3, 0.9),
    ("a rate that changes", (4, 4), 1.0, 0.0, [0.0, 1.0, 4.0, 2.0, 0.5], 0.9),
    ("large gradients do not matter", (4, 4), 1e6, 0.0, [1.0] * 3, 0.5),
    ("gradients of zero", (4, 4), 0.0, 0.0, [1.0] * 3, 0.9),
]


@pytest.mark.parametrize(("name", "shape", "gradient_size", "weight_decay", "lrs", "momentum"), LARS_CASES)
def test_lars_equals_the_description(name, shape, gradient_size, weight_decay, lrs, momentum):
    rng = np.random.default_rng(1)
    start = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
    gradients = [(rng.standard_normal(shape) * gradient_size).astype(np.float32) for _ in lrs]
    parameter = Parameter(Tensor(start), name="p")
    optimizer = LARS([parameter], momentum=momentum, trust=0.001, weight_decay=weight_decay)
    for gradient, lr in zip(gradients, lrs):
        optimizer((Tensor(gradient),), scalar(lr), scalar(1.0))
    exact = start.astype(np.float64), [g.astype(np.float64) for g in gradients], lrs
    expected = upstream_lars(*exact, momentum, 0.001, weight_decay)
    np.testing.assert_allclose(parameter.asnumpy(), expected, rtol=0, atol=1e-7, err_msg=name)
    if len(shape) > 1 and len(set(lrs)) == 1 and gradient_size:
        paper = paper_lars(*exact, momentum, 0.001, weight_decay)
        np.testing.assert_allclose(parameter.asnumpy(), paper, rtol=0, atol=1e-7, err_msg=name)
        assert np.abs(expected - start).max() > 1e-4  # it moves


def test_a_weight_of_zero_takes_the_plain_step():
    parameter = Parameter(Tensor(np.zeros((2, 2), np.float32)), name="p")
    LARS([parameter], momentum=0.9, trust=0.001)((Tensor(np.ones((2, 2), np.float32)),), scalar(0.5), scalar(1.0))
    np.testing.assert_array_equal(parameter.asnumpy(), np.full((2, 2), -0.5, np.float32))


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda p: AdamW([p], betas=(0.9, 0.999), weight_decay=0.1), id="AdamW"),
        pytest.param(lambda p: LARS([p], momentum=0.9, trust=0.001, weight_decay=0.1), id="LARS"),
    ],
)
def test_an_update_that_is_not_applied_leaves_no_trace(build):
    rng = np.random.default_rng(2)
    start = rng.standard_normal((3, 3)).astype(np.float32)
    gradients = [rng.standard_normal((3, 3)).astype(np.float32) for _ in range(3)]
    ends = []
    for name, sequence in (("plain", "ggg"), ("skipping", "0g00gg0")):
        parameter = Parameter(Tensor(start), name=name)
        optimizer, left = build(parameter), iter(gradients)
        for kind in sequence:
            gradient = next(left) if kind == "g" else np.zeros((3, 3), np.float32)
            optimizer((Tensor(gradient),), scalar(1e-2), scalar(float(kind == "g")))
        ends.append([parameter.asnumpy(), *(s.asnumpy() for s in optimizer.state)])
    for plain, skipping in zip(*ends):
        np.testing.assert_array_equal(plain, skipping)
    assert np.abs(ends[0][0] - start).max() > 1e-5


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("cls_token", 0),
        ("pos_embed", 0),
        ("patch_embed.proj.weight", 0),
        ("patch_embed.proj.bias", 0),
        ("blocks.0.norm1.weight", 1),
        ("blocks.11.mlp.fc2.bias", 12),
        ("norm.weight", 13),
        ("fc_norm.weight", 13),
        ("head.weight", 13),
    ],
)
def test_layer_ids_of_a_vit_b(name, layer):
    assert layer_id(name, depth=12) == layer


@pytest.mark.parametrize(
    ("name", "depth", "layer_decay", "parameter", "scale"),
    [
        ("B: embeddings", 12, 0.65, "patch_embed.proj.weight", 0.65**13),
        ("B: first block", 12, 0.65, "blocks.0.attn.qkv.weight", 0.65**12),
        ("B: last block", 12, 0.65, "blocks.11.attn.qkv.weight", 0.65),
        ("B: head", 12, 0.65, "head.weight", 1.0),
        ("L: cls token", 24, 0.75, "cls_token", 0.75**25),
        ("H: block 10", 32, 0.75, "blocks.10.mlp.fc1.bias", 0.75**22),
        ("no decay", 12, 1.0, "cls_token", 1.0),
    ],
)
def test_layer_scales(name, depth, layer_decay, parameter, scale):
    (found,) = layer_scales([parameter], depth=depth, layer_decay=layer_decay)
    assert found == pytest.approx(scale, rel=1e-12), name


SIZES = {
    "image_size": 8,
    "patch_size": 4,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 4,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


def trained_parameters(task, monkeypatch):
    """Name -> (decay, rate factor) of each parameter that a task trains, by its own optimiser."""
    from mae.training import task as job

    config = Config.model_validate({"task": task, "name": "t", "model": SIZES, "init": "x", task: {}})

    def fresh(_path, classes, sizes, *, drop_path, compute):
        return VisionTransformer(sizes, classes, drop_path=drop_path, compute=compute)

    monkeypatch.setattr(job, "classifier_from_mae", fresh)
    optimizer = job.build_job(config, classes=["a", "b", "c"]).optimizer
    names = [p.name for p in optimizer.params]
    if task == "linear":  # everything at one rate, and upstream's weight decay of 0
        return dict.fromkeys(names, (optimizer.weight_decay, 1.0))
    return dict(zip(names, zip(optimizer.decays, optimizer.scales)))


@pytest.mark.parametrize(
    ("task", "trained", "undecayed_matrices"),
    [
        ("pretrain", {"cls_token", "mask_token", "decoder_pred.weight", "blocks.1.norm1.bias"}, set()),
        ("finetune", {"cls_token", "pos_embed", "fc_norm.weight", "head.bias"}, {"cls_token", "pos_embed"}),
        ("linear", {"head.1.weight", "head.1.bias"}, {"head.1.weight"}),
    ],
)
def test_parameter_groups_of_each_task(task, trained, undecayed_matrices, monkeypatch):
    """Upstream's rule: biases and norms never decay; its fine-tuning spares cls_token and pos_embed too."""
    groups = trained_parameters(task, monkeypatch)
    assert trained <= set(groups)
    if task == "linear":
        assert set(groups) == trained
    if task == "pretrain":
        assert not {"pos_embed", "decoder_pos_embed"} & set(groups)
    undecayed = {n for n in groups if n.endswith(".bias") or "norm" in n} | undecayed_matrices
    assert {n for n, (decay, _) in groups.items() if decay == 0} == undecayed
    assert {decay for decay, _ in groups.values()} <= {0.0, 0.05}
    if task == "finetune":
        assert groups["blocks.0.attn.qkv.weight"][1] == pytest.approx(0.65**2, rel=1e-12)
