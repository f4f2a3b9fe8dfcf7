"""A tiny data set and a tiny job that the tests of this folder share; a session makes them once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from datasets.sample import unpack_sample
from datasets.sharding import write_records
from datasets.validation.validate import validate
from mae.config.load import load_config
from mae.config.sections import Config

os.environ.setdefault("GLOG_v", "3")

TINY = {
    "task": "pretrain",
    "name": "tiny",
    "seed": 3,
    "data": {"workers": 1},
    "model": {
        "image_size": 28,
        "patch_size": 7,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "decoder_embed_dim": 8,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
        "gelu": "tanh",
        "crop_pct": 1.0,
    },
    "device": {"ranks": 1},
    "pretrain": {"epochs": 4, "batch_size": 16, "blr": 8e-2, "warmup_epochs": 1, "checkpoint_epochs": 1},
    "finetune": {"epochs": 1, "batch_size": 16, "blr": 1e-2, "warmup_epochs": 0},
    "linear": {"epochs": 12, "batch_size": 20, "blr": 100.0, "warmup_epochs": 1, "crop_scale": 0.8},
    "logistic": {"pool": "mean", "l2": [1e-2, 1e-1], "tol": 1e-2},
}


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """200 training and 40 validation images of the sample, in folders."""
    return unpack_sample(tmp_path_factory.mktemp("images") / "tiny", train_per_class=20, val_per_class=4).root


@pytest.fixture(scope="session")
def records(images, tmp_path_factory) -> Path:
    """Their records."""
    folder = tmp_path_factory.mktemp("records")
    return write_records(validate(images, folder / "valid").directory, folder / "records").directory


@pytest.fixture(scope="session")
def tiny_yaml(records, tmp_path_factory) -> Path:
    """A job config on them."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "records": str(records)}}))
    return path


@pytest.fixture(scope="session")
def tiny(tiny_yaml) -> Config:
    """The same, loaded."""
    return load_config(tiny_yaml)


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """The tiny job, trained to its end."""
    from mae.train import train

    return train(tiny, workspace=tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    """Evaluate, predict and export in this process, not in a child, which would load MindSpore for each call."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("mae.evaluation.evaluate", "mae.prediction.predict", "mae.export.verified"):
            patch.setattr(import_module(module), "in_child", lambda function, *_, **__: function)
        yield
