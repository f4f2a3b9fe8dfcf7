"""Random weights of small models, without a framework."""

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
    """A card of a small model; a classifier has 3 classes."""
    extras = {"mae": {"mask_ratio": 0.6}, "classifier": {"classes": ["a", "b", "c"]}, "encoder": {}}[kind]
    default = {"pool": "cls"} if kind == "encoder" else {}
    return ModelCard(kind=kind, model=ModelConfig(**{**SMALL, **default, **config}), **extras)


def random_weights(of: ModelCard, seed: int = 0) -> dict[str, np.ndarray]:
    """Every weight of the card's model."""
    generator = np.random.default_rng(seed)
    return {
        name: np.array(7, np.int64) if name.endswith("tracked") else generator.standard_normal(shape, np.float32)
        for name, shape in shapes(of).items()
    }


def assert_same(found, expected) -> None:
    """The same names, types and bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)
