"""AutoConfig and AutoModel: names, files of other layouts, folders, runs."""

import json

import numpy as np
import pytest
from mindspore import Tensor

from datasets.base.errors import InputError
from mae import AutoConfig, AutoModel
from mae.model.mae import MaskedAutoencoder
from mae.model.vit import VisionTransformer
from tests.mae.made_weights import TINY

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mae_vit_base_p16", (16, 768, 12, 12, True, None)),
        ("mae_vit_large_p16", (16, 1024, 24, 16, True, None)),
        ("mae_vit_huge_p14", (14, 1280, 32, 16, True, None)),
        ("mae_vit_huge_p14_visualize", (14, 1280, 32, 16, False, None)),
        ("mae_vit_base_p16_finetuned", (16, 768, 12, 12, True, 1000)),
    ],
)
def test_a_names_sizes_need_no_download(name, values, monkeypatch):
    monkeypatch.setenv("MAE_MIRROR", "http://127.0.0.1:9")
    c = AutoConfig.from_pretrained(name)
    assert (c.patch_size, c.embed_dim, c.depth, c.num_heads, c.norm_pix_loss, c.num_classes) == values


def test_sizes_come_from_configs_and_runs(trained, tiny, tiny_yaml):
    assert AutoConfig.from_pretrained(tiny_yaml) == tiny.model
    assert AutoConfig.from_pretrained(trained.run_dir) == tiny.model
    assert AutoConfig.from_pretrained(str(trained.checkpoint)) == tiny.model


@pytest.mark.parametrize("what", ["run_dir", "checkpoint"])
def test_a_run_gives_its_model(trained, what):
    from mae.weights.restore import load_model

    model = AutoModel.from_pretrained(getattr(trained, what))
    expected = {p.name: p.asnumpy() for p in load_model(trained.checkpoint).get_parameters()}
    found = {p.name: p.asnumpy() for p in model.get_parameters()}
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert (model.card.kind, model.card.mask_ratio) == ("mae", 0.75)


def hugging_face_folder(folder):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    config.id2label, config.label2id = {0: "cat", 1: "dog", 2: "bag"}, {"cat": 0, "dog": 1, "bag": 2}
    theirs = transformers.ViTForImageClassification(config).eval()
    theirs.save_pretrained(folder)
    return theirs


def test_a_hugging_face_folder_gives_a_classifier_with_its_logits(tmp_path):
    theirs = hugging_face_folder(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    assert isinstance(model, VisionTransformer)
    assert model.card.labels == ["cat", "dog", "bag"]
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images)).logits.numpy()
    np.testing.assert_allclose(model(Tensor(images)).asnumpy(), expected, atol=1e-4)


def upstream_file(path, *, decoder):
    rng = np.random.default_rng(0)
    found = {p.name: rng.standard_normal(p.shape, np.float32) for p in MaskedAutoencoder(TINY).get_parameters()}
    kept = {n: torch.from_numpy(v) for n, v in found.items() if decoder or not n.startswith(("decoder", "mask"))}
    torch.save({"model": kept}, path)
    return found


@pytest.mark.parametrize(("decoder", "kind"), [(True, MaskedAutoencoder), (False, VisionTransformer)])
def test_upstreams_files_give_what_is_in_them(tmp_path, decoder, kind):
    expected = upstream_file(tmp_path / "w.pth", decoder=decoder)
    given = {"num_heads": 2, **({"decoder_num_heads": 2, "norm_pix_loss": True} if decoder else {})}
    model = AutoModel.from_pretrained(tmp_path / "w.pth", **given)
    assert type(model) is kind
    assert model.card.kind == ("mae" if decoder else "encoder")
    for parameter in model.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), expected[parameter.name], err_msg=parameter.name)
    assert model.encode(Tensor(np.zeros((1, 3, 16, 16), np.float32))).shape == (1, 5, 32)


def test_another_image_size_interpolates_the_position_embedding(tmp_path):
    upstream_file(tmp_path / "w.pth", decoder=True)
    given = {"num_heads": 2, "decoder_num_heads": 2, "norm_pix_loss": True}
    model = AutoModel.from_pretrained(tmp_path / "w.pth", image_size=32, **given)
    assert model.pos_embed.shape == (1, 17, 32)


def test_from_config_gives_a_classifier_where_there_are_classes():
    assert type(AutoModel.from_config(TINY)) is MaskedAutoencoder
    model = AutoModel.from_config(TINY.model_copy(update={"num_classes": 7}))
    assert type(model) is VisionTransformer
    assert model.head.weight.shape == (7, 32)


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("misspelt name", lambda p: AutoModel.from_pretrained("mae_vit_bas_p16"), "did you mean mae_vit_base_p16"),
        ("missing file", lambda p: AutoModel.from_pretrained(p / "none.pth"), "none.pth"),
        ("empty folder", lambda p: AutoModel.from_pretrained(p), "expected a checkpoint"),
        ("text", lambda p: AutoConfig.from_pretrained(p / "x.yaml"), "x.yaml: expected a YAML job config"),
        ("a dict", lambda p: AutoModel.from_config(json.loads("{}")), "config: expected a ModelConfig, found dict"),
    ],
)
def test_a_missing_or_wrong_model_is_named(tmp_path, name, call, message):
    with pytest.raises(InputError) as error:
        call(tmp_path)
    assert message in str(error.value), name
