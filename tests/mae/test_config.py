"""Configs: what is refused, and that the error names the place and the remedy."""

import pytest
import yaml

from datasets.stage import InputError
from mae.config import dump_config, load_config, parse_config

MINIMAL = {
    "task": "pretrain",
    "name": "small",
    "model": {"image_size": 32, "patch_size": 8},
    "pretrain": {"epochs": 3, "batch_size": 4, "blr": 1e-3, "warmup_epochs": 1},
}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    return file


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoks=3", "epoks: expected one of"),
        ("pretrain.epoch=3", "did you mean epochs?"),
        ("model.image_size=30", "image_size must be a multiple of patch_size, got 30 and 8"),
        ("model.num_heads=5", "embed_dim must be a multiple of num_heads"),
        ("pretrain.warmup_epochs=3", "warmup_epochs must be below epochs, got 3.0 and 3"),
        ("pretrain.mask_ratio=1.0", "pretrain.mask_ratio"),
        ("pretrain.batch_size=none", "pretrain.batch_size"),
        ("task=finetune", "task is finetune, so a section `finetune:` is needed"),
        ("task=sleep", "task: expected"),
        ("name=a/b", "name: expected"),
        ("name", "expected key=value"),
        ("name.first=x", "expected a section named name"),
        ("pretrain.blr=[", "expected YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused(path, override, message):
    with pytest.raises(InputError) as error:
        load_config(path, [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("a: [", "expected YAML"), ("- 1", "a YAML mapping"), (b"\xff\xfe\x00", "expected YAML")],
)
def test_a_file_that_is_no_config(tmp_path, content, message):
    file = tmp_path / "job.yaml"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=message):
        load_config(file)


def test_overrides_are_yaml_and_make_sections(path):
    config = load_config(path, ["pretrain.epochs=5", "linear.l2=[0.1]", "data.root=/images", "seed=7"])
    assert config.pretrain.epochs == 5
    assert config.linear.l2 == [0.1]
    assert config.data.root == "/images"
    assert config.seed == 7


def test_a_dumped_config_is_complete_and_reads_back(path, tmp_path):
    config = load_config(path)
    text = dump_config(config)
    assert "mask_ratio: 0.75" in text  # a default is written out
    again = tmp_path / "resolved.yaml"
    again.write_text(text)
    assert load_config(again) == config


def test_every_shipped_config_is_valid():
    from pathlib import Path

    configs = [p for p in Path("configs").glob("*.yaml") if not p.name.startswith("cluster")]
    assert len(configs) >= 2
    for file in configs:
        assert parse_config(yaml.safe_load(file.read_text()), source=file)
