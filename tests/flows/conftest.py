"""A data set and a job small enough for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.sample import unpack_sample

TINY_JOB = """
task: pretrain
name: tiny
data: {shard_mb: 1}
model: {image_size: 28, patch_size: 14, embed_dim: 16, depth: 1, num_heads: 2, decoder_embed_dim: 16,
        decoder_depth: 1, decoder_num_heads: 2, gelu: tanh}
pretrain: {epochs: 40, batch_size: 8, blr: 1.0e-3, warmup_epochs: 1, checkpoint_epochs: 1}
logistic: {pool: mean, tol: 0.01}
"""


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 100 training and 20 validation images of ten classes."""
    root = tmp_path_factory.mktemp("data") / "tiny"
    unpack_sample(root, train_per_class=10, val_per_class=2)
    return root


@pytest.fixture(scope="session")
def tiny_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a job with one rank that takes a few seconds."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY_JOB)
    return path


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace for one test."""
    monkeypatch.setenv("MAE_WORKSPACE", str(tmp_path / "workspace"))
    return tmp_path / "workspace"
