"""Random weights of small models, made without a framework."""

from __future__ import annotations

import numpy as np

from mae.config.sections import ModelConfig
from mae.model.card import ModelCard
from mae.weights.layouts import shapes

SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 8,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}

TINY = ModelConfig(**{**SMALL, "image_size": 16, "embed_dim": 32, "depth": 1, "decoder_embed_dim": 16})


def card(kind: str = "mae", **config) -> ModelCard:
    """Return the card of a small model. A classifier has 3 classes."""
    extras = {"mae": {"mask_ratio": 0.6}, "classifier": {"classes": ["a", "b", "c"]}, "encoder": {}}[kind]
    default = {"pool": "cls"} if kind == "encoder" else {}
    return ModelCard(kind=kind, model=ModelConfig(**{**SMALL, **default, **config}), **extras)


def random_weights(of: ModelCard, seed: int = 0) -> dict[str, np.ndarray]:
    """Return all weights of the card's model."""
    generator = np.random.default_rng(seed)
    return {
        name: np.array(7, np.int64) if name.endswith("tracked") else generator.standard_normal(shape, np.float32)
        for name, shape in shapes(of).items()
    }


def assert_same(found, expected) -> None:
    """Assert the same names, types and bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def as_mindformers(weights, pos_embed):
    """Return weights under MindFormers' names, as its converter (convert_weight.py) renames and transposes them."""
    found = {}
    for name, value in weights.items():
        theirs = name if name.startswith("decoder_") else f"vit.{name}"
        theirs = {"vit.cls_token": "vit.cls_tokens", "vit.mask_token": "mask_tokens"}.get(theirs, theirs)
        theirs = theirs.replace("vit.pos_embed", pos_embed).replace(".norm1.", ".layernorm1.")
        theirs = theirs.replace(".norm2.", ".layernorm2.").replace("mlp.fc1", "output.mapping")
        theirs = theirs.replace("mlp.fc2", "output.projection").replace("attn.proj", "attention.projection")
        if "norm" in theirs:
            theirs = theirs.replace(".weight", ".gamma").replace(".bias", ".beta")
        if theirs.endswith(("mapping.weight", "projection.weight")):
            value = np.ascontiguousarray(value.T)
        if "attn.qkv" in theirs:
            for number, part in enumerate(np.split(value, 3), 1):
                found[theirs.replace("attn.qkv", f"attention.dense{number}")] = part
        else:
            found[theirs] = value
    return found
