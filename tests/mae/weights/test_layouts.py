"""Layouts: `shapes` are the models' shapes, all spellings map to the same weights, and no weight is lost."""

import pytest

from mae.model.mae import MaskedAutoencoder
from mae.model.vit import VisionTransformer
from mae.weights.layouts import detect, differences, shapes, to_hugging_face, to_ours
from tests.mae.made_weights import as_mindformers, assert_same, card, random_weights


@pytest.mark.parametrize(
    ("name", "of", "build"),
    [
        ("mae", card(), lambda c: MaskedAutoencoder(c)),
        ("mae, not square, wide", card(image_size=(32, 16), mlp_ratio=2.5), lambda c: MaskedAutoencoder(c)),
        ("mean", card("classifier"), lambda c: VisionTransformer(c, 3)),
        ("cls", card("classifier", pool="cls"), lambda c: VisionTransformer(c, 3)),
        ("probe", card("classifier", pool="cls", head="batch_norm"), lambda c: VisionTransformer(c, 3)),
        ("encoder", card("encoder"), lambda c: VisionTransformer(c, 0)),
    ],
)
def test_shapes_are_the_models(name, of, build):
    assert shapes(of) == {p.name: tuple(p.shape) for p in build(of.model).get_parameters()}


def spelled(weights, replacements):
    """Return the same weights with parts of their names replaced."""
    found = {}
    for name, value in weights.items():
        for old, new in replacements:
            name = name.replace(old, new)
        found[name] = value
    return found


SAVED = [("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")]
MEMORY = [
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
]


@pytest.mark.parametrize(
    ("name", "kind", "prefixed", "replacements"),
    [
        ("published", "mae", True, []),
        ("save_pretrained", "mae", True, SAVED),
        ("in memory", "mae", True, MEMORY),
        ("classifier", "classifier", True, []),
        ("classifier in memory", "classifier", True, MEMORY),
        ("bare encoder", "encoder", False, []),
        ("bare encoder in memory", "encoder", False, MEMORY),
    ],
)
def test_spellings_of_hugging_face(name, kind, prefixed, replacements):
    weights = random_weights(card(kind, pool="cls"))
    theirs = spelled(to_hugging_face(weights, prefixed=prefixed), replacements)
    assert detect(theirs) == "hugging_face"
    assert not set(theirs) & set(weights)
    assert_same(to_ours(theirs, "hugging_face"), weights)


def test_names_that_hugging_face_publishes():
    names = to_hugging_face(random_weights(card()), prefixed=True)
    assert names["vit.encoder.layer.1.attention.attention.key.weight"].shape == (16, 16)
    assert names["decoder.decoder_layers.0.output.dense.weight"].shape == (8, 32)
    assert {"vit.embeddings.cls_token", "vit.layernorm.bias", "decoder.mask_token"} <= set(names)


@pytest.mark.parametrize("pos_embed", ["vit.pos_embed", "vit.sincos_pos_embedding"])
def test_mindformers(pos_embed):
    weights = random_weights(card())
    theirs = as_mindformers(weights, pos_embed)
    assert "vit.blocks.0.attention.dense2.weight" in theirs
    assert "decoder_norm.gamma" in theirs
    assert detect(theirs) == "mindformers"
    assert_same(to_ours(theirs, "mindformers"), weights)


def test_upstreams_names_are_ours():
    weights = random_weights(card())
    assert detect(weights) == "upstream"
    assert_same(to_ours(weights, "upstream"), weights)


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("unknown", lambda w: w.update({"vit.surplus": w["vit.layernorm.bias"]}), "unexpected: vit.surplus"),
        (
            "a query is gone",
            lambda w: w.pop("vit.encoder.layer.0.attention.attention.query.bias"),
            "missing: blocks.0.attn.qkv.bias; unexpected: blocks.0.k.bias, blocks.0.v.bias",
        ),
        (
            "an odd layer",
            lambda w: w.update({"vit.encoder.layer.0.odd.weight": w["vit.layernorm.bias"]}),
            "unexpected: vit.encoder.layer.0.odd.weight",
        ),
        (
            "a short norm",
            lambda w: w.update({"vit.layernorm.bias": w["vit.layernorm.bias"][:3]}),
            r"mis-shaped: norm.bias (3,) instead of (16,)",
        ),
    ],
)
def test_differences_are_named(name, change, found):
    theirs = to_hugging_face(random_weights(card()), prefixed=True)
    change(theirs)
    assert differences(to_ours(theirs, "hugging_face"), shapes(card())) == found


def test_two_spellings_of_one_weight_are_not_merged():
    theirs = to_hugging_face(random_weights(card()), prefixed=True)
    theirs["layernorm.bias"] = theirs["vit.layernorm.bias"] + 1
    assert "unexpected" in differences(to_ours(theirs, "hugging_face"), shapes(card()))
