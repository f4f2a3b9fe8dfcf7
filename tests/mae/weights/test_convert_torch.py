"""Conversion from and to torch and transformers: we read the files they write, and they load the files we write."""

from __future__ import annotations

import os
import re
from argparse import Namespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

from mindspore import Tensor  # noqa: E402

from datasets.base.errors import InputError  # noqa: E402
from mae.model.forward import Classify  # noqa: E402
from mae.model.pos_embed import interpolate  # noqa: E402
from mae.runs.model_file import model_file  # noqa: E402
from mae.weights.convert import convert, read  # noqa: E402
from mae.weights.restore import load_classifier  # noqa: E402
from tests.mae.made_weights import assert_same, card, random_weights  # noqa: E402
from tests.mae.torch_models import TimmViT, hf_classifier, hf_mae, randomise  # noqa: E402

GIVEN = {"num_heads": 2, "decoder_num_heads": 2}


def tensors(weights):
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def arrays(state):
    return {name: value.detach().numpy() for name, value in state.items()}


CHECKPOINT = {
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]},
    "epoch": 799,
    "scaler": {"scale": 65536.0},
}


@pytest.mark.parametrize(
    ("name", "of", "wrap", "expected"),
    [
        ("mae_pretrain_vit_tiny.pth", card("encoder"), lambda s: {"model": s}, {"kind": "encoder"}),
        ("mae_pretrain_vit_tiny_full.pth", card(), lambda s: {"model": s}, {"kind": "mae", "norm_pix_loss": True}),
        ("mae_visualize_vit_tiny.pth", card(), lambda s: {"model": s}, {"kind": "mae", "norm_pix_loss": False}),
        (
            "checkpoint-799.pth",
            card(),
            lambda s: {
                "model": s,
                **CHECKPOINT,
                "args": Namespace(norm_pix_loss=False, input_size=32, mask_ratio=0.6, model="mae_vit_tiny"),
            },
            {"norm_pix_loss": False, "mask_ratio": 0.6, "dropped": ["epoch", "optimizer", "scaler"]},
        ),
        ("finetuned.pth", card("classifier"), lambda s: {"model": s}, {"kind": "classifier", "pool": "mean"}),
        ("finetuned_cls.pth", card("classifier", pool="cls"), lambda s: {"model": s}, {"pool": "cls"}),
        (
            "linprobe.pth",
            card("classifier", pool="cls", head="batch_norm"),
            lambda s: {"model": s},
            {"pool": "cls", "head": "batch_norm", "num_classes": 3},
        ),
        ("timm.pth", card("classifier", pool="cls"), lambda s: s, {"kind": "classifier"}),
        ("timm_nested.pt", card("classifier", pool="cls"), lambda s: {"state_dict": s, "arch": "vit"}, {}),
        ("parallel.bin", card("encoder"), lambda s: {f"module.{n}": v for n, v in s.items()}, {"kind": "encoder"}),
    ],
)
def test_torch_layouts_and_back(tmp_path, name, of, wrap, expected):
    weights = random_weights(of)
    torch.save(wrap(tensors(weights)), tmp_path / name)
    loaded = read(tmp_path / name, settings=GIVEN)
    assert_same(loaded.weights, weights)
    said = {**loaded.card.model.model_dump(), **loaded.card.conversion.model_dump(), **loaded.card.model_dump()}
    assert {key: said[key] for key in expected} == expected
    convert(tmp_path / name, tmp_path / "ours.safetensors", settings=GIVEN)
    convert(tmp_path / "ours.safetensors", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_same(arrays(back["model"]), weights)
    again = read(tmp_path / "back.pth")
    assert again.card.model == loaded.card.model
    assert_same(again.weights, weights)


@pytest.mark.parametrize("shape", [{}, {"pool": "mean"}, {"head": "batch_norm"}, {"head": "none"}])
def test_a_model_with_timm_keys_loads_what_we_write(tmp_path, shape):
    model = randomise(TimmViT(**shape))
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    convert(tmp_path / "vit.pth", tmp_path / "vit.ckpt", settings={"num_heads": 3})
    convert(tmp_path / "vit.ckpt", tmp_path / "back.pth")
    other = TimmViT(**shape)
    other.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True)["model"], strict=True)
    assert_same(arrays(other.state_dict()), arrays(model.state_dict()))


def test_upstreams_arguments_know_the_heads(tmp_path):
    """Nothing is assumed about a published architecture that its arguments contain."""
    args = Namespace(norm_pix_loss=True, input_size=32, mask_ratio=0.75, model="mae_vit_base_patch16")
    weights = random_weights(card(embed_dim=24, decoder_embed_dim=32))
    torch.save({"model": tensors(weights), "args": args}, tmp_path / "checkpoint-0.pth")
    loaded = read(tmp_path / "checkpoint-0.pth")
    assert (loaded.card.model.num_heads, loaded.card.model.decoder_num_heads) == (12, 16)
    assert loaded.card.conversion.assumed == []


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a call", lambda p: {"model": {}, "args": Evil(p / "pwned")}, "expected only tensors"),
        ("a call in the arguments", lambda p: {"model": {}, "args": Namespace(a=Evil(p / "pwned"))}, "mkdir"),
        ("a whole model", lambda p: torch.nn.Linear(2, 2), "expected only tensors.*Linear"),
        ("a list", lambda p: [1, 2], "expected a state dict, found list"),
        ("a number among tensors", lambda p: {"model": {"x": 3}}, "x: expected a tensor, found int"),
        ("nothing", lambda p: {"model": {}}, "a vision transformer's weights"),
    ],
)
def test_nothing_is_executed(tmp_path, name, content, message):
    """And the error does not repeat torch's advice to turn the protection off."""
    torch.save(content(tmp_path), tmp_path / "x.pth")
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / "x.pth")
    assert not re.search("weights_only|add_safe_globals|issue", str(error.value))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda _: b"not torch", lambda _: b"hello\n", lambda _: b""]
)
def test_a_damaged_file(tmp_path, damage):
    torch.save({"model": tensors(random_weights(card()))}, tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes(damage((tmp_path / "x.pth").read_bytes()))
    with pytest.raises(InputError, match=r"x\.pth: expected"):
        read(tmp_path / "x.pth")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_become_float32(tmp_path, dtype):
    halves = {n: v.to(getattr(torch, dtype)) for n, v in tensors(random_weights(card("encoder"))).items()}
    torch.save(halves, tmp_path / "vit.pth")
    loaded = read(tmp_path / "vit.pth", settings=GIVEN)
    assert_same(loaded.weights, arrays({name: value.float() for name, value in halves.items()}))
    assert f"cls_token: {dtype} -> float32" in loaded.card.conversion.changed


@pytest.mark.parametrize(
    ("old", "new"),
    [((14, 14), (24, 24)), ((14, 14), (7, 7)), ((4, 4), (3, 9)), ((5, 3), (2, 8)), ((1, 2), (4, 4)), ((6, 6), (6, 6))],
)
def test_interpolation_is_torchs(old, new):
    pos_embed = np.random.default_rng(0).uniform(-1, 1, (1, 1 + old[0] * old[1], 12)).astype(np.float32)
    grid = torch.from_numpy(pos_embed[:, 1:]).reshape(1, *old, 12).permute(0, 3, 1, 2)
    moved = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    expected = moved.permute(0, 2, 3, 1).reshape(1, -1, 12).numpy()
    found = interpolate(pos_embed, old, new)
    np.testing.assert_array_equal(found[:, :1], pos_embed[:, :1])
    np.testing.assert_allclose(found[:, 1:], expected, atol=1e-6)


def hf_encoder():
    from transformers import ViTConfig, ViTModel

    from tests.mae.torch_models import TINY_HF

    return randomise(ViTModel(ViTConfig(**TINY_HF), add_pooling_layer=False))


HF = {
    "mae": (hf_mae, "ViTMAEForPreTraining", {}),
    "classifier": (hf_classifier, "ViTForImageClassification", {}),
    "encoder": (hf_encoder, "ViTModel", {"add_pooling_layer": False}),
}


@pytest.mark.parametrize("kind", HF)
def test_transformers_loads_what_we_write(tmp_path, kind):
    build, class_name, options = HF[kind]
    model = build()
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "back")
    back, info = getattr(transformers, class_name).from_pretrained(
        tmp_path / "back", output_loading_info=True, **options
    )
    assert {key: set(value) for key, value in info.items() if value} == {}
    assert_same(arrays(back.state_dict()), arrays(model.state_dict()))
    for key in ("hidden_size", "num_attention_heads", "intermediate_size", "image_size", "layer_norm_eps", "id2label"):
        assert getattr(back.config, key) == getattr(model.config, key), key
    if kind == "mae":
        assert back.config.decoder_intermediate_size == model.config.decoder_intermediate_size
        assert (back.config.norm_pix_loss, back.config.mask_ratio) == (False, 0.75)


@pytest.mark.parametrize("kind", HF)
@pytest.mark.parametrize("form", ["file", "memory", "bin folder"])
def test_other_forms_of_hugging_face(tmp_path, kind, form):
    model = HF[kind][0]()
    model.save_pretrained(tmp_path / "hf")
    expected = read(tmp_path / "hf").weights
    if form == "file":
        source = (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "vit.safetensors")
    elif form == "memory":
        source = tmp_path / "vit.pth"
        torch.save(model.state_dict(), source)
    else:
        source = tmp_path / "hf"
        (source / "model.safetensors").unlink()
        torch.save(model.state_dict(), source / "pytorch_model.bin")
    settings = {} if form == "bin folder" else {"num_heads": 3, "decoder_num_heads": 2}
    loaded = read(source, settings=settings)
    assert_same(loaded.weights, expected)
    assert loaded.card.kind == kind
    assert loaded.card.model.layer_norm_eps == 1e-12


HALF = [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("mean", "std"), [(HALF, HALF), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
def test_logits_from_uint8_pixels_are_those_of_transformers_with_its_processor(tmp_path, mean, std):
    theirs, size = hf_classifier(), {"height": 30, "width": 30}
    processor = transformers.ViTImageProcessor(size=size, image_mean=mean, image_std=std)
    images = np.random.default_rng(0).integers(0, 256, (3, 30, 30, 3), dtype=np.uint8)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = theirs(pixels).logits.numpy()
    theirs.save_pretrained(tmp_path / "theirs")
    processor.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours.safetensors")
    convert(tmp_path / "ours.safetensors", tmp_path / "back")
    for source in (tmp_path / "theirs", tmp_path / "ours.safetensors"):
        classify = Classify(load_classifier(model_file(source)))
        classify.set_train(False)
        np.testing.assert_allclose(classify(Tensor(images)).asnumpy(), expected, atol=1e-4)
    back = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back")
    assert (list(back.image_mean), list(back.image_std), int(back.resample)) == (mean, std, 3)
    assert dict(back.size) == size
    torch.testing.assert_close(back(list(images), return_tensors="pt")["pixel_values"], pixels, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "args", "warned", "mean"),
    [
        ("upstream's fine-tuning", {"nb_classes": 3, "global_pool": True}, False, (0.485, 0.456, 0.406)),
        ("timm's, given", {"model": "vit", "mean": HALF, "std": HALF}, False, (0.5, 0.5, 0.5)),
        ("timm's, not given", {"model": "vit", "mean": None, "std": None}, True, (0.485, 0.456, 0.406)),
    ],
)
def test_training_arguments_give_the_pixel_values(tmp_path, name, args, warned, mean):
    content = {"model": tensors(random_weights(card("classifier"))), "args": Namespace(**args)}
    torch.save(content, tmp_path / "last.pth")
    found = read(tmp_path / "last.pth", settings=GIVEN).card
    assert found.model.pixel_mean == mean, name
    assert any("pixel_mean" in line for line in found.conversion.assumed) is warned


def test_the_encoder_of_transformers_mae(tmp_path):
    model = hf_mae()
    model.vit.save_pretrained(tmp_path / "vit")
    loaded = read(tmp_path / "vit")
    assert loaded.card.kind == "encoder"
    model.save_pretrained(tmp_path / "mae")
    whole = read(tmp_path / "mae").weights
    assert_same(loaded.weights, {name: whole[name] for name in loaded.weights})


def test_classes_have_their_names(tmp_path):
    model = hf_classifier(labels=3)
    model.config.id2label = {0: "cat", 1: "dog", 2: "eel"}
    model.config.label2id = {"cat": 0, "dog": 1, "eel": 2}
    model.save_pretrained(tmp_path / "hf")
    assert read(tmp_path / "hf").card.classes == ["cat", "dog", "eel"]
    hf_classifier(labels=3).save_pretrained(tmp_path / "unnamed")
    assert read(tmp_path / "unnamed").card.labels == ["0", "1", "2"]
