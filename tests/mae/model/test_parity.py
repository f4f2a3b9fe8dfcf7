"""The same weights and images give the same numbers here and in transformers and torch (CPU, float32).

Weights are random with every bias, norm, token and position embedding taking part, and come here through `read`.
"""

from __future__ import annotations

import gc

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

from mae.config.sections import ModelConfig  # noqa: E402
from mae.masking import ids_from_noise  # noqa: E402
from mae.model.mae import MaskedAutoencoder  # noqa: E402
from mae.weights.convert import read  # noqa: E402
from mae.weights.restore import load_classifier, load_encoder, load_model, load_parameters  # noqa: E402
from tests.mae.torch_models import TINY_DECODER, TINY_HF, TimmViT, hf_classifier, hf_mae, images, randomise  # noqa: E402

LOSS, PREDICTION, GRADIENT, LOGITS = 1e-5, 1e-4, 1e-3, 1e-4
B16 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
L16 = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
H14 = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120}
DECODER = {
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
}
LARGE = {"image_size": 224, "patch_size": 16, **DECODER}


def theirs(model, pixels, noise):
    """(loss, predictions) of transformers; its own forward refuses images that are not square, its parts do not."""
    x, noise = torch.from_numpy(pixels), torch.from_numpy(noise)
    if x.shape[2] == x.shape[3]:
        found = model(x, noise=noise)
        return found.loss, found.logits
    encoded = model.vit(x, noise=noise)
    pred = model.decoder(encoded.last_hidden_state, encoded.ids_restore).logits
    target = model.patchify(x, interpolate_pos_encoding=True)
    if model.config.norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (((pred - target) ** 2).mean(-1) * encoded.mask).sum() / encoded.mask.sum(), pred


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("30x30, patch 5, 3 heads", {**TINY_HF, **TINY_DECODER}),
        ("15x60: transformers wants a square number of patches", {**TINY_HF, **TINY_DECODER, "image_size": [15, 60]}),
        ("other norm epsilon", {**TINY_HF, **TINY_DECODER, "layer_norm_eps": 1e-2}),
        ("wider MLP in the decoder", {**TINY_HF, **TINY_DECODER, "decoder_intermediate_size": 56}),
        ("tanh GELU", {**TINY_HF, **TINY_DECODER, "hidden_act": "gelu_pytorch_tanh"}),
        ("ViT-B/16", {**LARGE, **B16}),
    ],
)
def test_mae_forward_and_gradients(tmp_path, name, config, norm_pix_loss):
    model = hf_mae(**config, norm_pix_loss=norm_pix_loss)
    ours = load_model(saved(model, tmp_path / "hf"))
    assert ours.config.norm_pix_loss is norm_pix_loss
    pixels = images(ours.config.image_shape)
    noise = np.random.default_rng(1).random((len(pixels), ours.patches)).astype(np.float32)
    loss, pred = theirs(model, pixels, noise)
    loss.backward()
    inputs = [Tensor(pixels), *map(Tensor, ids_from_noise(noise, model.config.mask_ratio))]
    found_pred, _ = ours.reconstruct(*inputs)
    assert worst(found_pred.asnumpy(), pred.detach().numpy()) < PREDICTION

    parameters = list(ours.trainable_params())
    found_loss, gradients = ms.value_and_grad(ours, None, parameters)(*inputs)
    assert abs(float(found_loss) / loss.item() - 1) < LOSS
    expected = gradients_by_our_names(model, tmp_path)
    errors = {}
    for parameter, gradient in zip(parameters, gradients, strict=True):
        errors[parameter.name] = relative(gradient.asnumpy(), expected.pop(parameter.name))
    assert set(expected) == {"pos_embed", "decoder_pos_embed"}
    print(
        f"{name}, norm_pix {norm_pix_loss}: loss {abs(float(found_loss) / loss.item() - 1):.1e}, prediction "
        f"{worst(found_pred.asnumpy(), pred.detach().numpy()):.1e}, gradient {max(errors.items(), key=lambda e: e[1])}"
    )
    assert max(errors.values()) < GRADIENT, sorted(errors.items(), key=lambda e: -e[1])[:5]


def relative(found: np.ndarray, reference: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def gradients_by_our_names(model, folder) -> dict[str, np.ndarray]:
    """Transformers' gradients through the same mapping as its weights."""
    state = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    torch.save(state, folder / "gradients.pth")
    config = model.config
    return read(
        folder / "gradients.pth",
        settings={
            "num_heads": config.num_attention_heads,
            "decoder_num_heads": config.decoder_num_attention_heads,
            "image_size": config.image_size,
        },
    ).weights


@pytest.mark.parametrize(
    ("name", "config"), [("ViT-L/16", {**LARGE, **L16}), ("ViT-H/14", {**LARGE, **H14, "patch_size": 14})]
)
def test_mae_forward_of_the_large_sizes(tmp_path, name, config):
    model = hf_mae(**config, norm_pix_loss=True)
    pixels = images((224, 224), count=1)
    patches = (224 // config["patch_size"]) ** 2
    noise = np.random.default_rng(1).random((1, patches)).astype(np.float32)
    with torch.no_grad():
        loss, pred = theirs(model, pixels, noise)
    folder = saved(model, tmp_path / "hf")
    del model
    gc.collect()
    ours = load_model(folder)
    inputs = [Tensor(pixels), *map(Tensor, ids_from_noise(noise, 0.75))]
    found_pred, _ = ours.reconstruct(*inputs)
    found_loss = ours(*inputs)
    print(
        f"{name}: loss {abs(float(found_loss) / loss.item() - 1):.1e}, "
        f"prediction {worst(found_pred.asnumpy(), pred.numpy()):.1e} of {pred.abs().max():.1f}"
    )
    assert worst(found_pred.asnumpy(), pred.numpy()) < PREDICTION
    assert abs(float(found_loss) / loss.item() - 1) < LOSS


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("30x30, patch 5", {}),
        ("35x20", {"image_size": [35, 20]}),
        ("ViT-B/16", {**B16, "image_size": 224, "patch_size": 16}),
    ],
)
def test_classifier_of_transformers(tmp_path, name, config):
    model = hf_classifier(**config)
    ours = load_classifier(saved(model, tmp_path / "hf"))
    pixels = images(ours.config.image_shape)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).logits.numpy()
    error = worst(ours(Tensor(pixels)).asnumpy(), expected)
    print(f"{name}: logits {error:.1e}")
    assert error < LOGITS


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("cls token", {}, {}),
        ("mean, fc_norm", {"pool": "mean"}, {}),
        ("linear probe", {"head": "batch_norm"}, {}),
        ("not square", {"size": (35, 20)}, {"image_size": [35, 20]}),
        ("ViT-B/16", {"size": (224, 224), "patch": 16, "dim": 768, "depth": 12, "heads": 12, "pool": "mean"}, {}),
    ],
)
def test_classifier_with_timm_keys(tmp_path, name, shape, settings):
    model = randomise(TimmViT(**shape))
    torch.save({"model": model.state_dict()}, tmp_path / "vit.pth")
    ours = load_classifier(tmp_path / "vit.pth", settings={"num_heads": shape.get("heads", 3), **settings})
    ours.set_train(False)
    pixels = images(ours.config.image_shape)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).numpy()
    error = worst(ours(Tensor(pixels)).asnumpy(), expected)
    print(f"{name}: logits {error:.1e}")
    assert error < LOGITS


def test_encoder_tokens(tmp_path):
    model = randomise(TimmViT(head="none"))
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    ours = load_encoder(tmp_path / "vit.pth", settings={"num_heads": 3})
    pixels = images((30, 30))
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).numpy()
    assert worst(ours.encode(Tensor(pixels)).asnumpy(), expected) < LOGITS


def test_at_another_size_as_transformers_interpolates(tmp_path):
    model = hf_classifier()
    ours = load_classifier(saved(model, tmp_path / "hf"), settings={"image_size": 40})
    pixels = images((40, 40))
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels), interpolate_pos_encoding=True).logits.numpy()
    assert worst(ours(Tensor(pixels)).asnumpy(), expected) < LOGITS


def test_a_wrong_epsilon_would_be_seen(tmp_path):
    """The predictions above depend on the epsilon that config.json tells."""
    model = hf_mae(layer_norm_eps=1e-2)
    loaded = read(saved(model, tmp_path / "hf"))
    wrong = MaskedAutoencoder(ModelConfig(**{**loaded.card.model.model_dump(), "layer_norm_eps": 1e-6}))
    load_parameters(wrong, loaded.weights, source="x")
    pixels = images((30, 30))
    noise = np.random.default_rng(1).random((2, wrong.patches)).astype(np.float32)
    _, pred = theirs(model, pixels, noise)
    found, _ = wrong.reconstruct(*map(Tensor, (pixels, *ids_from_noise(noise, 0.75))))
    assert worst(found.asnumpy(), pred.detach().numpy()) > 10 * PREDICTION
