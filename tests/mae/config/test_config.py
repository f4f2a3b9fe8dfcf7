"""Configs: what is refused, and that the error names the place and the remedy."""

import re
from pathlib import Path

import pytest
import yaml

from datasets.base.errors import InputError
from mae.config.load import dump_config, load_config, parse_config

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
        ("pretrain.warmup_epochs=40", "warmup_epochs must be below epochs, got 40.0 and 3"),
        (
            "pretrain.min_lr=1.5625e-5",
            "pretrain.min_lr must be below the learning rate, got 1.56e-05 and 1.56e-05 by lr =",
        ),
        ("pretrain.mask_ratio=0.99", "pretrain.mask_ratio must keep and remove at least one patch, got 0.99 of 16"),
        ("pretrain.betas=[0.9, 1.0]", "pretrain.betas.1: expected Input should be less than 1"),
        ("pretrain.clip_grad=0", "pretrain.clip_grad"),
        ("pretrain.ema=1.0", "pretrain.ema"),
        ("pretrain.accum_iter=0", "pretrain.accum_iter"),
        ("finetune.rand_augment=rand-m9-n3-inc1", "rand_augment must be rand-mM-mstdS-inc1 with a whole number M of"),
        ("finetune.rand_augment=rand-m11-mstd0.5-inc1", "10 and a number S of 0 to 100, got 'rand-m11-mstd0.5-inc1'"),
        ("finetune.rand_augment=9", "finetune.rand_augment: expected Input should be a valid string"),
        ("pretrain.rand_augment=rand-m9-mstd0.5-inc1", "pretrain.rand_augment: expected one of"),
        ("finetune.random_erasing=1.5", "finetune.random_erasing: expected Input should be less than or equal to 1"),
        ("finetune.random_erasing=-0.1", "finetune.random_erasing: expected Input should be greater"),
        ("finetune={min_lr: 1.0}", "finetune.min_lr must be below the learning rate"),
        ("linear.batch_size=1", "linear.batch_size"),
        ("task=linear", "task is linear, so a section `linear:` is needed"),
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
    config = load_config(path, ["pretrain.epochs=5", "logistic.l2=[0.1]", "data.root=/images", "seed=7"])
    assert config.pretrain.epochs == 5
    assert config.section("logistic").l2 == [0.1]
    assert config.data.root == "/images"
    assert config.seed == 7


def test_a_dumped_config_is_complete_and_reads_back(path, tmp_path):
    config = load_config(path)
    text = dump_config(config)
    assert "mask_ratio: 0.75" in text  # a default is written out
    again = tmp_path / "resolved.yaml"
    again.write_text(text)
    assert load_config(again) == config


def shipped():
    return sorted(p for p in Path("configs").glob("*.yaml") if not p.name.startswith("cluster"))


@pytest.mark.parametrize("file", shipped(), ids=lambda p: p.stem)
def test_a_shipped_config_keeps_its_promise(file):
    """Valid, with command, expected result, expected time and source at its head, and a batch that fits its comment."""
    text = file.read_text()
    config = parse_config(yaml.safe_load(text), source=file)
    head = text.split("\ntask:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    words = " ".join(head.replace("#", " ").split())
    assert re.search(rf"make demo|(mae train|prefect deployment run) .*{file.stem}|this file is", words)
    assert "Expected" in words
    assert "Source: " in words
    assert re.search(r"\b(h|min|minutes|s)\b", words.split("Expected", 1)[1])
    for name in ("pretrain", "finetune", "linear"):
        recipe = getattr(config, name)
        if recipe is not None and config.device.ranks == 8:
            assert (
                recipe.batch_size * 8 * recipe.accum_iter == {"pretrain": 4096, "finetune": 1024, "linear": 16384}[name]
            )


@pytest.mark.parametrize(
    ("file", "section", "expected"),
    [
        (
            "pretrain_vit_b16_800ep",
            "pretrain",
            {"epochs": 800, "lr": 2.4e-3, "warmup_epochs": 40, "betas": (0.9, 0.95)},
        ),
        ("pretrain_vit_l16_800ep", "pretrain", {"epochs": 800, "lr": 2.4e-3, "weight_decay": 0.05, "mask_ratio": 0.75}),
        ("pretrain_vit_h14_1600ep", "pretrain", {"epochs": 1600, "lr": 2.4e-3, "min_lr": 0.0, "crop_scale": 0.2}),
        ("finetune_vit_b16", "finetune", {"epochs": 100, "lr": 2e-3, "layer_decay": 0.65, "drop_path": 0.1}),
        ("finetune_vit_l16", "finetune", {"epochs": 50, "lr": 4e-3, "layer_decay": 0.75, "drop_path": 0.2}),
        ("finetune_vit_h14", "finetune", {"epochs": 50, "lr": 4e-3, "layer_decay": 0.75, "drop_path": 0.3}),
        ("linear_vit_b16", "linear", {"epochs": 90, "lr": 6.4, "warmup_epochs": 10, "weight_decay": 0.0}),
        ("linear_vit_l16", "linear", {"epochs": 50, "lr": 6.4, "momentum": 0.9, "trust": 0.001}),
        ("linear_vit_h14", "linear", {"epochs": 50, "lr": 6.4, "crop_scale": 0.08}),
    ],
)
def test_a_recipe_is_the_published_one(file, section, expected):
    config = load_config(f"configs/{file}.yaml")
    recipe = getattr(config, section)
    found = {key: getattr(recipe, key) for key in expected if key != "lr"}
    assert found == {key: value for key, value in expected.items() if key != "lr"}
    assert recipe.lr(ranks=config.device.ranks) == pytest.approx(expected["lr"], rel=1e-12)
    if section == "finetune":
        assert (recipe.label_smoothing, recipe.mixup, recipe.cutmix, recipe.min_lr) == (0.1, 0.8, 1.0, 1e-6)
        assert (recipe.rand_augment, recipe.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)


@pytest.mark.parametrize("file", ["demo", "demo_finetune"])
def test_the_demos_change_no_colours(file):
    recipe = load_config(f"configs/{file}.yaml").finetune
    assert (recipe.rand_augment, recipe.random_erasing) == (None, 0.0)


SIZES = {"b16": (16, 768, 12, 12), "l16": (16, 1024, 24, 16), "h14": (14, 1280, 32, 16)}


@pytest.mark.parametrize("file", [p for p in shipped() if "vit" in p.stem], ids=lambda p: p.stem)
def test_a_config_has_the_model_of_its_name(file):
    model = load_config(file).model
    assert (model.patch_size, model.embed_dim, model.depth, model.num_heads) == SIZES[file.stem.split("_")[2]]
    assert (model.decoder_embed_dim, model.decoder_depth, model.decoder_num_heads) == (512, 8, 16)


@pytest.mark.parametrize("epochs", [300, 400, 800, 1600])
@pytest.mark.parametrize("file", [p for p in shipped() if p.stem.startswith("pretrain")], ids=lambda p: p.stem)
def test_lengths_differ_by_one_value(file, epochs):
    assert load_config(file, [f"pretrain.epochs={epochs}"]).recipe.epochs == epochs
    assert "ep" not in load_config(file).name.split("-")[-1], "the run's name says no length"
