"""Conversion without torch: round trips are bit-exact, errors name all faults, assumptions are logged."""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import save_file

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from mae.evaluation.evaluate import evaluate
from mae.runs.model_file import load_card, load_weights
from mae.weights.convert import convert, read
from mae.weights.layouts import to_hugging_face
from mae.weights.restore import classifier_from_mae, load_classifier, load_encoder, load_model
from tests.mae.command_line import mae
from tests.mae.made_weights import as_mindformers, assert_same, card, random_weights

GIVEN = {"num_heads": 2, "decoder_num_heads": 2}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MAE = card()
CARDS = {
    "mae": MAE,
    "classifier": card("classifier"),
    "cls classifier": card("classifier", pool="cls"),
    "linear probe": card("classifier", pool="cls", head="batch_norm"),
    "encoder": card("encoder"),
    "other pixels": card("classifier", pool="cls", pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.5, 0.25, 1)),
    "not square": card(image_size=(32, 16), mlp_ratio=2.5, gelu="tanh", norm_pix_loss=False),
}


def ours(path, of=MAE, **changes):
    """Write weights with their card."""
    weights = {**random_weights(of), **changes}
    save_file(weights, path, metadata={"maeflow": of.model_dump_json()})
    return weights


def bare(path, of=MAE, **changes):
    """Write weights without a card."""
    weights = {**random_weights(of), **changes}
    save_file(weights, path)
    return weights


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("through", ["b.ckpt", "b.safetensors", "folder", "hf.safetensors"])
def test_round_trips_are_exact(tmp_path, name, through):
    weights = ours(tmp_path / "a.safetensors", CARDS[name])
    hugging_face = through in ("folder", "hf.safetensors")
    layout = "hugging_face" if hugging_face else None
    if hugging_face and name in ("classifier", "linear probe"):
        with pytest.raises(InputError, match="expected a head on the cls token alone"):
            convert(tmp_path / "a.safetensors", tmp_path / through, layout=layout)
        assert not (tmp_path / through).exists()
        return
    convert(tmp_path / "a.safetensors", tmp_path / through, layout=layout)
    convert(tmp_path / through, tmp_path / "c.safetensors")
    found = read(tmp_path / "c.safetensors")
    assert_same(found.weights, weights)
    assert found.card.model_copy(update={"conversion": None}) == CARDS[name]
    assert found.card.conversion.earlier.sha256 == file_digest(tmp_path / "a.safetensors")
    assert found.card.conversion.earlier.source == "a.safetensors"


def test_our_own_file_is_read_as_it_stands(trained):
    loaded = read(trained.run_dir)
    assert loaded.card == load_card(trained.checkpoint)
    assert_same(loaded.weights, load_weights(trained.checkpoint))


@pytest.mark.parametrize(
    ("name", "of", "kind", "pool"),
    [
        ("no head", card("encoder", embed_dim=192, num_heads=3), "encoder", "cls"),
        ("norm and head", card("classifier", embed_dim=192, num_heads=3, pool="cls"), "classifier", "cls"),
        ("fc_norm and head", card("classifier", embed_dim=192, num_heads=3), "classifier", "mean"),
        ("probe", card("classifier", embed_dim=192, num_heads=3, pool="cls", head="batch_norm"), "classifier", "cls"),
    ],
)
def test_a_bare_file_shows_its_architecture(tmp_path, name, of, kind, pool):
    weights = bare(tmp_path / "vit.safetensors", of)
    loaded = read(tmp_path / "vit.safetensors")
    assert_same(loaded.weights, weights)
    assert (loaded.card.kind, loaded.card.model.pool, loaded.card.model.head) == (kind, pool, of.model.head)
    for field in ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "layer_norm_eps"):
        assert getattr(loaded.card.model, field) == getattr(of.model, field), field
    assert loaded.card.classes is None
    assert loaded.card.labels == (["0", "1", "2"] if kind == "classifier" else [])
    assert any("num_heads 3" in line for line in loaded.card.conversion.assumed)


def test_assumptions_are_listed_and_logged(tmp_path, caplog):
    bare(tmp_path / "mae.safetensors")
    loaded = read(tmp_path / "mae.safetensors", settings=GIVEN)
    assert loaded.card.model.norm_pix_loss
    assert [line.split()[0] for line in loaded.card.conversion.assumed] == ["norm_pix_loss", "mask_ratio"]
    assert "assumed norm_pix_loss true" in caplog.text
    given = read(tmp_path / "mae.safetensors", settings={**GIVEN, "norm_pix_loss": False, "mask_ratio": 0.5})
    assert (given.card.model.norm_pix_loss, given.card.mask_ratio, given.card.conversion.assumed) == (False, 0.5, [])
    assert given.card.conversion.settings == {**GIVEN, "norm_pix_loss": False, "mask_ratio": 0.5}


@pytest.mark.parametrize(
    ("file", "expected"),
    [("mae_visualize_vit_tiny.safetensors", False), ("mae_pretrain_vit_tiny_full.safetensors", True)],
)
def test_a_published_file_name_gives_norm_pix_loss(tmp_path, file, expected):
    bare(tmp_path / file)
    loaded = read(tmp_path / file, settings=GIVEN)
    assert loaded.card.model.norm_pix_loss is expected
    assert not any("norm_pix" in line for line in loaded.card.conversion.assumed)


def without(*names):
    return lambda weights: [weights.pop(name) for name in names]


@pytest.mark.parametrize(
    ("name", "change", "settings", "message"),
    [
        ("missing", without("norm.bias", "decoder_pred.bias"), GIVEN, "missing: decoder_pred.bias, norm.bias"),
        (
            "a whole block",
            lambda w: [w.pop(n) for n in list(w) if n.startswith("blocks.0.norm")],
            GIVEN,
            "blocks.0.norm1",
        ),
        ("unexpected", lambda w: w.update(surplus=w["norm.bias"]), GIVEN, "unexpected: surplus"),
        (
            "mis-shaped",
            lambda w: w.update({"decoder_embed.bias": w["norm.bias"]}),
            GIVEN,
            r"mis-shaped: decoder_embed.bias \(16,\) instead of \(8,\)",
        ),
        ("unknown width", lambda w: None, {}, "expected num_heads, .*embed_dim 16.*--set num_heads"),
        ("decoder's", lambda w: None, {"num_heads": 2}, "--set decoder_num_heads"),
        ("unknown setting", lambda w: None, {"num_head": 2}, "num_head: .*did you mean num_heads"),
        ("unfit heads", lambda w: None, {**GIVEN, "num_heads": 3}, "embed_dim must be a multiple of num_heads"),
        ("contradicting depth", lambda w: None, {**GIVEN, "depth": 3}, "missing: blocks.2.attn.proj.bias"),
        ("a run that diverged", lambda w: w["norm.bias"].fill(np.nan), GIVEN, "NaN or infinity in norm.bias"),
        ("all removed", lambda w: None, {**GIVEN, "mask_ratio": 1.0}, "mask_ratio: .*less than 1"),
        ("a mean of 255", lambda w: None, {**GIVEN, "pixel_mean": [123.7, 116.3, 103.5]}, "pixel_mean.0: .*equal to 1"),
        ("a grey mean", lambda w: None, {**GIVEN, "pixel_mean": [0.5]}, "pixel_mean.1: .*required"),
        ("no spread", lambda w: None, {**GIVEN, "pixel_std": [0.5, 0, 0.5]}, "pixel_std.1: .*greater than 0"),
        ("size no multiple", lambda w: None, {**GIVEN, "image_size": 33}, "must be a multiple of patch_size"),
        ("not square", lambda w: w.update(pos_embed=w["pos_embed"][:, :9]), GIVEN, "8 patches, which is not a square"),
        ("no ViT", lambda w: w.clear() or w.update(x=np.zeros(3, np.float32)), {}, "a vision transformer's weights"),
    ],
)
def test_faults_are_named(tmp_path, name, change, settings, message):
    weights = random_weights(MAE)
    change(weights)
    save_file(weights, tmp_path / "mae.safetensors")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "mae.safetensors", settings=settings)


def test_the_image_size_of_a_grid_that_is_not_square_is_a_setting(tmp_path):
    weights = bare(tmp_path / "mae.safetensors", card(image_size=(32, 16)))
    loaded = read(tmp_path / "mae.safetensors", settings={**GIVEN, "image_size": [32, 16]})
    assert_same(loaded.weights, weights)
    assert loaded.card.model.grid == (4, 2)


def test_another_size_interpolates(tmp_path):
    """Twice the rows: a row of ones spreads like cubic convolution with A = -0.75, in both embeddings."""
    pos_embed = np.zeros((1, 65, 16), np.float32)
    pos_embed[0, 0], pos_embed[0, 1 + 4 * 8 : 1 + 5 * 8] = 99, 1
    ours(
        tmp_path / "a.safetensors",
        card(image_size=64),
        pos_embed=pos_embed,
        decoder_pos_embed=pos_embed[..., :8].copy(),
    )
    loaded = read(tmp_path / "a.safetensors", settings={"image_size": [128, 64]})
    assert loaded.card.model.grid == (16, 8)
    kernel = [-0.03515625, -0.10546875, 0.26171875, 0.87890625]  # of distances 1.75, 1.25, 0.75, 0.25
    expected = np.zeros((16, 8))
    expected[5:13] = np.array(kernel + kernel[::-1])[:, None]
    for name, dim in (("pos_embed", 16), ("decoder_pos_embed", 8)):
        found = loaded.weights[name]
        assert found.shape == (1, 1 + 16 * 8, dim)
        assert (found[0, 0] == 99).all()
        np.testing.assert_allclose(found[0, 1:].reshape(16, 8, dim), np.dstack([expected] * dim), atol=1e-7)
    assert loaded.card.conversion.changed == [
        "decoder_pos_embed: interpolated from 8x8 to 16x8 patches",
        "pos_embed: interpolated from 8x8 to 16x8 patches",
    ]
    load_model(tmp_path / "a.safetensors", settings={"image_size": [128, 64]})


def test_float16_becomes_float32(tmp_path):
    halves = {name: value.astype(np.float16) for name, value in random_weights(card("encoder")).items()}
    save_file(halves, tmp_path / "vit.safetensors")
    loaded = read(tmp_path / "vit.safetensors", settings=GIVEN)
    assert_same(loaded.weights, {name: value.astype(np.float32) for name, value in halves.items()})
    assert "cls_token: float16 -> float32" in loaded.card.conversion.changed


def test_bfloat16_becomes_float32(tmp_path):
    """The file is written by hand, because NumPy has no bfloat16: it is the upper half of a float32."""
    weights = random_weights(card("encoder"))
    header, content = {}, b""
    for name, value in weights.items():
        upper = (value.view(np.uint32) >> 16).astype("<u2")
        header[name] = {
            "dtype": "BF16",
            "shape": value.shape,
            "data_offsets": [len(content), len(content) + upper.nbytes],
        }
        content += upper.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "vit.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content)
    loaded = read(tmp_path / "vit.safetensors", settings=GIVEN)
    exact = {name: (value.view(np.uint32) >> 16 << 16).view(np.float32) for name, value in weights.items()}
    assert_same(loaded.weights, exact)
    assert "cls_token: bfloat16 -> float32" in loaded.card.conversion.changed


def test_mindformers_checkpoint(tmp_path):
    weights = random_weights(MAE)
    theirs = as_mindformers(weights, "vit.sincos_pos_embedding")
    entries = [{"name": name, "data": ms.Tensor(value)} for name, value in theirs.items()]
    entries += [{"name": "adam_m.vit.cls_tokens", "data": ms.Tensor(theirs["vit.cls_tokens"])}]
    ms.save_checkpoint(entries, str(tmp_path / "mae.ckpt"), append_dict={"epoch_num": 3})
    loaded = read(tmp_path / "mae.ckpt", settings=GIVEN)
    assert_same(loaded.weights, weights)
    assert loaded.card.conversion.layout == "mindformers"
    assert loaded.card.conversion.dropped == ["adam_m.vit.cls_tokens", "epoch_num"]
    assert any("gelu exact" in line for line in loaded.card.conversion.assumed)


def hf_folder(folder, of, **config):
    """Write a folder as transformers does, with `config` changed in config.json and without our card."""
    convert_from = folder.parent / "source.safetensors"
    ours(convert_from, of)
    convert(convert_from, folder)
    text = json.loads((folder / "config.json").read_text())
    text.update(config)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in text.items() if v is not None}))
    weights = to_hugging_face(random_weights(of), prefixed=of.kind != "encoder")
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def test_a_hugging_face_config_describes_the_model(tmp_path):
    of = card("classifier", pool="cls", layer_norm_eps=1e-12, gelu="tanh")
    loaded = read(hf_folder(tmp_path / "hf", of))
    sizes = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    for name in (*sizes, "layer_norm_eps", "gelu", "pool"):
        assert getattr(loaded.card.model, name) == getattr(of.model, name), name
    assert (loaded.card.kind, loaded.card.model.num_classes) == ("classifier", 3)
    assert loaded.card.classes == ["a", "b", "c"]
    assert loaded.card.conversion.assumed == []
    assert_same(loaded.weights, random_weights(of))
    alone = read((tmp_path / "hf" / "model.safetensors").rename(tmp_path / "vit.safetensors"), settings=GIVEN)
    assert alone.card.model.layer_norm_eps == 1e-12
    assert any("layer_norm_eps" in line for line in alone.card.conversion.assumed)


def pixels(of):
    return of.model.pixel_mean, of.model.pixel_std


def test_old_cards_without_pixel_values_mean_imagenets(tmp_path):
    text = MAE.model_dump(mode="json")
    del text["model"]["pixel_mean"], text["model"]["pixel_std"]
    save_file(random_weights(MAE), tmp_path / "old.safetensors", metadata={"maeflow": json.dumps(text)})
    assert pixels(read(tmp_path / "old.safetensors").card) == IMAGENET
    assert read(tmp_path / "old.safetensors").card == MAE


@pytest.mark.parametrize(
    ("name", "of", "layout", "warned"),
    [
        ("mae.safetensors", MAE, "upstream", False),
        ("mae_pretrain_vit_tiny.safetensors", card("encoder"), "upstream", False),
        ("mae_finetuned_vit_tiny.safetensors", card("classifier"), "upstream", False),
        ("timm.safetensors", CARDS["cls classifier"], "upstream", True),
        ("timm_features.safetensors", card("encoder"), "upstream", True),
        ("mae.safetensors", MAE, "hugging_face", False),
        ("vit.safetensors", CARDS["cls classifier"], "hugging_face", True),
        ("folder", MAE, "hugging_face", False),
        ("folder", CARDS["cls classifier"], "hugging_face", True),
        ("folder", card("encoder"), "hugging_face", True),
    ],
)
def test_pixel_values_are_assumed_with_a_warning_if_models_differ_in_them(tmp_path, caplog, name, of, layout, warned):
    source = tmp_path / name
    if name == "folder":
        (hf_folder(source, of) / "preprocessor_config.json").unlink()
    elif layout == "hugging_face":
        save_file(to_hugging_face(random_weights(of), prefixed=of.kind != "encoder"), source)
    else:
        bare(source, of)
    caplog.clear()
    loaded = read(source, settings=GIVEN)
    assert pixels(loaded.card) == IMAGENET
    found = [line.split()[0] for line in loaded.card.conversion.assumed if "pixel" in line]
    assert found == (["pixel_mean", "pixel_std"] if warned else [])
    assert ("--set pixel_mean=[0.5,0.5,0.5]" in caplog.text) is warned
    given = read(source, settings={**GIVEN, "pixel_mean": [0.5] * 3, "pixel_std": [0.5] * 3})
    assert pixels(given.card) == HALF
    assert not any("pixel" in line for line in given.card.conversion.assumed)


@pytest.mark.parametrize(
    ("name", "preprocessor", "expected"),
    [
        ("halves", {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, HALF),
        ("ImageNet's", {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, IMAGENET),
        ("one number", {"image_mean": 0.5, "image_std": 0.25}, ((0.5,) * 3, (0.25,) * 3)),
        ("transformers' defaults", {"feature_extractor_type": "ViTFeatureExtractor"}, HALF),
        ("not normalised", {"do_normalize": False, "image_mean": [0.5] * 3}, ((0, 0, 0), (1, 1, 1))),
        ("a rounded factor", {"rescale_factor": 0.00392156862745098}, HALF),
        ("another factor", {"rescale_factor": 0.00784313725490196}, "rescale_factor: expected 1/255, found 0.0078"),
        ("not rescaled", {"do_rescale": False}, "rescale_factor: expected 1/255, found 1"),
        ("of 255", {"image_mean": [123.675, 116.28, 103.53]}, "image_mean: expected three numbers between 0 and 1"),
        ("no spread", {"image_std": [0.5, 0, 0.5]}, "image_std: expected three numbers"),
        ("two channels", {"image_std": [0.5, 0.5]}, "image_std: expected three numbers"),
        ("a word", {"image_mean": "imagenet"}, "image_mean: expected three numbers"),
    ],
)
def test_a_hugging_face_preprocessor_gives_the_pixel_values(tmp_path, name, preprocessor, expected):
    folder = hf_folder(tmp_path / "hf", CARDS["cls classifier"])
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if isinstance(expected, str):
        with pytest.raises(InputError, match=f"preprocessor_config.json: {expected}"):
            read(folder)
        return
    loaded = read(folder)
    assert pixels(loaded.card) == expected, name
    assert loaded.card.conversion.assumed == []


def test_a_hugging_face_folder_keeps_the_pixel_values(tmp_path):
    """In preprocessor_config.json: `hf_folder` writes the weights without our card."""
    of = CARDS["other pixels"]
    folder = hf_folder(tmp_path / "hf", of)
    assert pixels(read(folder).card) == pixels(of)
    convert(folder, tmp_path / "again")
    first, second = ((f / "preprocessor_config.json").read_text() for f in (folder, tmp_path / "again"))
    assert first == second
    assert json.loads(first)["size"] == {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act: expected one of gelu"),
        ({"qkv_bias": False}, "qkv_bias: expected true"),
        ({"num_channels": 1}, "num_channels: expected 3"),
        ({"model_type": "deit"}, "model_type: expected vit or vit_mae"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "architectures: expected one of"),
        ({"head_dim": 4}, "head_dim: expected 8"),
        ({"num_hidden_layers": 3}, "missing: blocks.2"),
        ({"architectures": ["ViTForImageClassification"]}, "missing: head.bias, head.weight"),
        ({"decoder_intermediate_size": 7}, None),
    ],
)
def test_an_unsupported_config_is_refused(tmp_path, config, message):
    if message is None:  # the shapes of the weights take precedence
        assert read(hf_folder(tmp_path / "hf", MAE, **config)).card.model.mlp_ratio == 4
        return
    of = card("encoder") if "architectures" in config or config.get("model_type") else MAE
    with pytest.raises(InputError, match=message):
        read(hf_folder(tmp_path / "hf", of, **config))


def test_a_pooler_is_dropped_and_named(tmp_path, caplog):
    of = card("encoder")
    folder = hf_folder(tmp_path / "hf", of)
    weights = load_weights(folder / "model.safetensors")
    weights["pooler.dense.weight"], weights["pooler.dense.bias"] = (
        np.eye(16, dtype=np.float32),
        weights["layernorm.bias"],
    )
    save_file(weights, folder / "model.safetensors")
    caplog.set_level("INFO")
    loaded = read(folder)
    assert_same(loaded.weights, random_weights(of))
    assert loaded.card.conversion.dropped == ["pooler.dense.bias", "pooler.dense.weight"]
    assert "dropped: pooler.dense" in caplog.text


def test_an_encoder_becomes_a_mae_only_with_random_decoder(tmp_path):
    weights = ours(tmp_path / "vit.safetensors", card("encoder"))
    sizes = {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}
    convert(tmp_path / "vit.safetensors", tmp_path / "mae.safetensors", random_decoder=True, settings=sizes)
    loaded = read(tmp_path / "mae.safetensors")
    assert (loaded.card.kind, loaded.card.decoder) == ("mae", "random")
    assert_same({name: loaded.weights[name] for name in weights}, weights)
    assert loaded.weights["decoder_pred.weight"].std() > 0.01
    load_model(tmp_path / "mae.safetensors")
    convert(tmp_path / "mae.safetensors", tmp_path / "mae.ckpt")
    assert read(tmp_path / "mae.ckpt").card.decoder == "random"  # the mark stays
    with pytest.raises(InputError, match="an encoder without decoder, to add a random one, found a mae"):
        read(tmp_path / "mae.safetensors", random_decoder=True)


def test_a_mean_pooled_classifier_is_not_an_encoder(tmp_path):
    ours(tmp_path / "vit.safetensors", card("classifier"))
    with pytest.raises(InputError, match="expected a mae or encoder checkpoint, found a classifier"):
        load_encoder(tmp_path / "vit.safetensors")


def test_another_model_at_the_destination_is_kept(tmp_path):
    ours(tmp_path / "a.safetensors")
    ours(tmp_path / "other.safetensors", norm=np.zeros(0, np.float32))
    for destination in ("b.safetensors", "b.ckpt", "folder"):
        first = convert(tmp_path / "a.safetensors", tmp_path / destination)
        again = convert(tmp_path / "a.safetensors", tmp_path / destination)
        assert (first.reused, again.reused, again.digest) == (False, True, first.digest)
        ours(tmp_path / "c.safetensors", **{"norm.bias": np.ones(16, np.float32)})
        with pytest.raises(InputError, match=r"found something else.*--overwrite"):
            convert(tmp_path / "c.safetensors", tmp_path / destination)
        assert_same(read(tmp_path / destination).weights, random_weights(MAE))
        convert(tmp_path / "c.safetensors", tmp_path / destination, overwrite=True)
        assert (read(tmp_path / destination).weights["norm.bias"] == 1).all()
    (tmp_path / "notes.ckpt").write_text("mine")
    with pytest.raises(InputError, match="found something else"):
        convert(tmp_path / "a.safetensors", tmp_path / "notes.ckpt")
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.safetensors", b"\x10" + bytes(40), "expected a safetensors file"),
        ("x.ckpt", b"nothing of the kind", "expected a MindSpore checkpoint"),
        ("x.h5", b"", "expected one of .pth"),
        ("x.safetensors", None, "expected a checkpoint"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


@pytest.fixture(scope="module")
def tiny_encoder(trained, tmp_path_factory):
    """The tiny job's encoder in a file of its own, converted from one without a card, such as timm's."""
    path = tmp_path_factory.mktemp("encoder") / "vit.safetensors"
    weights = load_weights(trained.checkpoint)
    save_file({n: w for n, w in weights.items() if not n.startswith(("decoder_", "mask_token"))}, path)
    settings = {"num_heads": 2, "gelu": "tanh", "crop_pct": 1.0}
    convert(path, path.with_name("encoder.safetensors"), settings=settings)
    return path.with_name("encoder.safetensors")


@pytest.mark.usefixtures("in_process")
def test_an_encoder_alone_is_evaluated_like_its_mae(trained, tiny_encoder, records, tiny, tmp_path):
    arguments = {"protocol": "knn", "config": tiny, "workspace": tmp_path}
    whole = evaluate(trained.run_dir, records, out=tmp_path / "mae", **arguments)
    alone = evaluate(tiny_encoder, records, out=tmp_path / "out", **arguments)
    assert alone.results[0] == whole.results[0]


@pytest.mark.parametrize("changes", [{}, {"pool": "cls", "head": "batch_norm"}])
def test_an_encoder_alone_is_trained_further_like_its_mae(trained, tiny_encoder, tiny, changes):
    """Fine-tuning and the linear probe read a checkpoint only through `classifier_from_mae`."""
    config = tiny.model.model_copy(update=changes)
    whole, alone = (
        {p.name: p.asnumpy() for p in classifier_from_mae(path, 10, config, drop_path=0).get_parameters()}
        for path in (trained.checkpoint, tiny_encoder)
    )
    kept = [name for name in whole if not name.startswith(("head.", "fc_norm."))]
    assert_same({name: alone[name] for name in kept}, {name: whole[name] for name in kept})


def test_evaluating_a_file_outside_of_any_run_needs_out(tiny_encoder, records, tiny, tmp_path):
    with pytest.raises(InputError, match="--out"):
        evaluate(tiny_encoder, records, protocol="knn", config=tiny, workspace=tmp_path)


def test_the_final_norm_stays_with_the_cls_token(tmp_path):
    weights = ours(tmp_path / "vit.safetensors", card("encoder"))
    config = card("encoder").model.model_copy(update={"pool": "cls"})
    model = classifier_from_mae(tmp_path / "vit.safetensors", 4, config, drop_path=0)
    np.testing.assert_array_equal(model.norm.weight.asnumpy(), weights["norm.weight"])
    assert model.head.weight.shape == (4, 16)


def test_a_linear_probe_keeps_its_statistics(tmp_path):
    of = CARDS["linear probe"]
    weights = ours(tmp_path / "probe.safetensors", of)
    model = load_classifier(tmp_path / "probe.safetensors")
    assert_same({p.name: p.asnumpy() for p in model.get_parameters()}, weights)


def test_the_command(tmp_path, monkeypatch):
    bare(tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    failed = mae("convert", "a.safetensors", "b.ckpt")
    assert failed.code == 1
    assert "--set num_heads=..." in failed.stderr
    settings = ["--set", "num_heads=2", "--set", "decoder_num_heads=2", "--set", "norm_pix_loss=false"]
    result = mae("convert", "a.safetensors", "b.ckpt", *settings).result
    assert (result["kind"], result["weights"]) == ("mae", len(random_weights(MAE)))
    assert read(tmp_path / "b.ckpt").card.model.norm_pix_loss is False
