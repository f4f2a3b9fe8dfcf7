"""The masked autoencoder: against a NumPy forward pass, by finite differences, and in its upstream names and sizes."""

import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mae.config.sections import ComputeConfig, ModelConfig
from mae.device.context import setup
from mae.masking import ids_from_noise
from mae.model.mae import MaskedAutoencoder
from mae.model.vit import BatchNorm, VisionTransformer, patchify

SMALL = ModelConfig(
    image_size=12,
    patch_size=4,
    embed_dim=16,
    depth=2,
    num_heads=2,
    decoder_embed_dim=8,
    decoder_depth=1,
    decoder_num_heads=2,
)


@pytest.fixture(autouse=True)
def _cpu():
    setup("CPU", ranks=1)
    ms.set_seed(0)
    np.random.seed(0)


def inputs(model, images=3, mask_ratio=0.6):
    rng = np.random.default_rng(1)
    pixels = rng.standard_normal((images, 3, *model.config.image_shape)).astype(np.float32)
    return pixels, *ids_from_noise(rng.random((images, model.patches)), mask_ratio)


def weights_of(model):
    return {p.name: p.asnumpy().astype(np.float64) for p in model.get_parameters()}


def numpy_blocks(x, w, prefix, depth, heads, gelu):
    """Pre-norm blocks in float64, written from He et al.'s and Dosovitskiy et al.'s papers."""
    for i in range(depth):
        p = f"{prefix}.{i}."
        n, t, d = x.shape
        y = numpy_norm(x, w, p + "norm1") @ w[p + "attn.qkv.weight"].T + w[p + "attn.qkv.bias"]
        q, k, v = y.reshape(n, t, 3, heads, d // heads).transpose(2, 0, 3, 1, 4)
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(d // heads)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        mixed = (attention @ v).transpose(0, 2, 1, 3).reshape(n, t, d)
        x = x + mixed @ w[p + "attn.proj.weight"].T + w[p + "attn.proj.bias"]
        y = gelu(numpy_norm(x, w, p + "norm2") @ w[p + "mlp.fc1.weight"].T + w[p + "mlp.fc1.bias"])
        x = x + y @ w[p + "mlp.fc2.weight"].T + w[p + "mlp.fc2.bias"]
    return x


def numpy_norm(x, w, name):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * w[name + ".weight"] + w[name + ".bias"]


def exact_gelu(x):
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def numpy_patches(images, p):
    n, c, h, w = images.shape
    cut = [images[:, :, i : i + p, j : j + p].transpose(0, 2, 3, 1) for i in range(0, h, p) for j in range(0, w, p)]
    return np.stack(cut, 1).reshape(n, -1, p * p * c)


def numpy_mae(model, images, ids_keep, ids_restore, gelu, changed=None):
    """Loss and predictions as upstream's forward pass orders the operations: embed all, add positions, then mask."""
    w, c = {**weights_of(model), **(changed or {})}, model.config
    patches = numpy_patches(images.astype(np.float64), c.patch_size)
    projection = w["patch_embed.proj.weight"].transpose(0, 2, 3, 1).reshape(c.embed_dim, -1)
    x = patches @ projection.T + w["patch_embed.proj.bias"] + w["pos_embed"][:, 1:]
    x = np.take_along_axis(x, ids_keep[:, :, None].astype(int), 1)
    cls = np.broadcast_to(w["cls_token"] + w["pos_embed"][:, :1], (len(x), 1, c.embed_dim))
    x = numpy_blocks(np.concatenate([cls, x], 1), w, "blocks", c.depth, c.num_heads, gelu)
    x = numpy_norm(x, w, "norm") @ w["decoder_embed.weight"].T + w["decoder_embed.bias"]
    masked = np.broadcast_to(w["mask_token"], (len(x), ids_restore.shape[1] + 1 - x.shape[1], c.decoder_embed_dim))
    full = np.take_along_axis(np.concatenate([x[:, 1:], masked], 1), ids_restore[:, :, None].astype(int), 1)
    x = np.concatenate([x[:, :1], full], 1) + w["decoder_pos_embed"]
    x = numpy_blocks(x, w, "decoder_blocks", c.decoder_depth, c.decoder_num_heads, gelu)
    pred = (numpy_norm(x, w, "decoder_norm") @ w["decoder_pred.weight"].T + w["decoder_pred.bias"])[:, 1:]
    target = patches
    if c.norm_pix_loss:
        target = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    mask = (ids_restore >= ids_keep.shape[1]).astype(np.float64)
    return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum(), pred, mask


@pytest.mark.parametrize(
    ("name", "changes", "gelu"),
    [
        ("as published", {}, exact_gelu),
        ("other options", {"gelu": "tanh", "norm_pix_loss": False, "image_size": (8, 20)}, tanh_gelu),
    ],
)
def test_forward_equals_numpy(name, changes, gelu):
    model = MaskedAutoencoder(SMALL.model_copy(update=changes))
    images, ids_keep, ids_restore = inputs(model)
    loss, pred, mask = numpy_mae(model, images, ids_keep, ids_restore, gelu)
    arguments = Tensor(images), Tensor(ids_keep), Tensor(ids_restore)
    assert float(model(*arguments).asnumpy()) == pytest.approx(loss, rel=1e-5), name
    found_pred, found_mask = model.reconstruct(*arguments)
    np.testing.assert_allclose(found_pred.asnumpy(), pred, atol=1e-4)
    np.testing.assert_array_equal(found_mask.asnumpy(), mask)


COMPUTE = {
    "float32": ComputeConfig(),
    "recomputed blocks": ComputeConfig(recompute=True),
    "float16": ComputeConfig(dtype="float16"),
    "float16, decoder in float32": ComputeConfig(dtype="float16", decoder_float32=True),
}


@functools.cache
def computed(name):
    """A model that always starts the same, its loss on `inputs`, and its gradients by name. Each is compiled once."""
    ms.set_seed(0)
    np.random.seed(0)
    model = MaskedAutoencoder(SMALL, compute=COMPUTE[name])
    parameters = model.trainable_params()
    loss, gradients = ms.value_and_grad(model, None, parameters)(*map(Tensor, inputs(model)))
    return model, float(loss.asnumpy()), dict(zip([p.name for p in parameters], gradients, strict=True))


@pytest.mark.parametrize(
    "parameter",
    [
        "mask_token",
        "decoder_embed.weight",
        "cls_token",
        "patch_embed.proj.weight",
        "blocks.1.norm1.weight",
        "blocks.0.norm2.bias",
    ],
)
def test_gradients_equal_finite_differences(parameter):
    """Across the hand-written gradients of Unshuffle and LayerNorm, on the NumPy forward pass in float64."""
    model, _, gradients = computed("float32")
    gradient = gradients[parameter].asnumpy()
    direction = np.random.default_rng(2).standard_normal(gradient.shape)
    direction /= np.linalg.norm(direction)
    start, losses = weights_of(model)[parameter], []
    for step in (1e-4, -1e-4):
        changed = {parameter: start + step * direction}
        losses.append(numpy_mae(model, *inputs(model), exact_gelu, changed)[0])
    assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(float((gradient * direction).sum()), rel=1e-3, abs=1e-6)


def test_removed_patches_do_not_reach_the_encoder():
    model = MaskedAutoencoder(SMALL)
    images, ids_keep, ids_restore = inputs(model)
    changed = images.copy()
    for n in range(len(images)):
        for patch in set(range(model.patches)) - set(ids_keep[n].tolist()):
            row, column = divmod(patch, 3)
            changed[n, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] = 9.0
    predictions = [
        model.reconstruct(Tensor(x), Tensor(ids_keep), Tensor(ids_restore))[0].asnumpy() for x in (images, changed)
    ]
    np.testing.assert_array_equal(*predictions)


def test_patchify_orders_row_column_channel():
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 12)).astype(np.float32)
    np.testing.assert_array_equal(patchify(Tensor(images), 4).asnumpy(), numpy_patches(images, 4))


@pytest.mark.parametrize(
    ("name", "build", "parameters"),
    [
        ("MAE", MaskedAutoencoder, 111_907_840),  # mmpretrain's metafile: 111.91 M
        ("classifier", lambda config: VisionTransformer(config, 1000), 86_567_656),  # timm: 86.57 M
    ],
)
def test_a_vit_b_has_the_published_number_of_parameters(name, build, parameters):
    frozen = {"pos_embed", "decoder_pos_embed"}
    model = build(ModelConfig())
    counted = sum(p.size for p in model.get_parameters() if p.name not in frozen)
    embeddings = sum(p.size for p in model.get_parameters() if p.name in frozen)
    assert counted + embeddings == parameters, name


def test_parameters_have_upstream_names():
    names = {p.name: tuple(p.shape) for p in MaskedAutoencoder(SMALL).get_parameters()}
    block = {
        "norm1.weight": (16,),
        "norm1.bias": (16,),
        "attn.qkv.weight": (48, 16),
        "attn.qkv.bias": (48,),
        "attn.proj.weight": (16, 16),
        "attn.proj.bias": (16,),
        "norm2.weight": (16,),
        "norm2.bias": (16,),
        "mlp.fc1.weight": (64, 16),
        "mlp.fc1.bias": (64,),
        "mlp.fc2.weight": (16, 64),
        "mlp.fc2.bias": (16,),
    }
    assert {n.removeprefix("blocks.1."): s for n, s in names.items() if n.startswith("blocks.1.")} == block
    others = {n: s for n, s in names.items() if "blocks." not in n}
    assert others == {
        "cls_token": (1, 1, 16),
        "pos_embed": (1, 10, 16),
        "patch_embed.proj.weight": (16, 3, 4, 4),
        "patch_embed.proj.bias": (16,),
        "norm.weight": (16,),
        "norm.bias": (16,),
        "decoder_embed.weight": (8, 16),
        "decoder_embed.bias": (8,),
        "mask_token": (1, 1, 8),
        "decoder_pos_embed": (1, 10, 8),
        "decoder_norm.weight": (8,),
        "decoder_norm.bias": (8,),
        "decoder_pred.weight": (48, 8),
        "decoder_pred.bias": (48,),
    }


@pytest.mark.parametrize(
    ("name", "tolerance"), [("recomputed blocks", 0), ("float16", 2e-3), ("float16, decoder in float32", 2e-3)]
)
def test_compute_options_change_little_or_nothing(name, tolerance):
    """Against float32: the loss, relative, and each gradient, relative to the largest of its parameter."""
    (_, loss, expected), (_, other_loss, other) = computed("float32"), computed(name)
    assert other_loss == pytest.approx(loss, rel=tolerance), name
    for a, b in zip(expected.values(), other.values(), strict=True):
        assert b.dtype == ms.float32
        np.testing.assert_allclose(b.asnumpy(), a.asnumpy(), atol=20 * tolerance * float(abs(a).max().asnumpy()))
    assert (other_loss == loss) == (tolerance == 0)  # half precision must be in use


def test_batch_norm_head_trains_and_remembers_as_torch_documents():
    """torch.nn.BatchNorm1d: biased variance in the batch, unbiased in the running one, momentum 0.1."""
    norm = BatchNorm(3)
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    norm.set_train(True)
    y = norm(Tensor(x)).asnumpy()
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6), atol=1e-5)
    np.testing.assert_allclose(norm.running_mean.asnumpy(), 0.1 * x.mean(0), atol=1e-6)
    np.testing.assert_allclose(norm.running_var.asnumpy(), 0.9 + 0.1 * x.var(0, ddof=1), atol=1e-6)
    assert int(norm.num_batches_tracked.asnumpy()) == 1
    norm.set_train(False)
    expected = (x - norm.running_mean.asnumpy()) / np.sqrt(norm.running_var.asnumpy() + 1e-6)
    np.testing.assert_allclose(norm(Tensor(x)).asnumpy(), expected, atol=1e-5)
