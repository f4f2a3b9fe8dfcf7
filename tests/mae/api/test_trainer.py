"""Trainer: its recipe, the data it finds, training, evaluation and prediction."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from datasets.base.errors import InputError
from datasets.records import load_index
from mae import Trainer
from mae.config.sections import ModelConfig
from mae.runs.checkpoint import newest

SHORT = ["pretrain.epochs=2", "pretrain.warmup_epochs=1", "pretrain.batch_size=16", "pretrain.accum_iter=1"]
TUNE = ["finetune.epochs=1", "finetune.warmup_epochs=0", "finetune.batch_size=16", "finetune.accum_iter=1"]


@pytest.fixture(scope="module")
def small(tiny):
    return ModelConfig(**tiny.model.model_dump())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("trainer")


@pytest.fixture(scope="module")
def pretrained(small, images, workspace):
    trainer = Trainer("masked_image_modeling", small, images / "train", overrides=SHORT, workspace=workspace)
    return trainer, trainer.train()


@pytest.mark.parametrize(
    ("name", "task", "model", "overrides", "expected"),
    [
        (
            "pre-training as published",
            "masked_image_modeling",
            "mae_vit_base_p16",
            [],
            {"epochs": 800, "batch_size": 64, "accum_iter": 64, "blr": 1.5e-4, "min_lr": 0, "warmup_epochs": 40,
             "weight_decay": 0.05, "betas": (0.9, 0.95), "mask_ratio": 0.75, "crop_scale": 0.2},
        ),
        (
            "fine-tuning B",
            "image_classification",
            "mae_vit_base_p16",
            [],
            {"epochs": 100, "batch_size": 32, "accum_iter": 32, "blr": 5e-4, "min_lr": 1e-6, "warmup_epochs": 5,
             "weight_decay": 0.05, "layer_decay": 0.65, "drop_path": 0.1, "label_smoothing": 0.1},
        ),
        (
            "fine-tuning L",
            "image_classification",
            "mae_vit_large_p16",
            [],
            {"epochs": 50, "accum_iter": 32, "blr": 1e-3, "layer_decay": 0.75, "drop_path": 0.2},
        ),
        (
            "fine-tuning H",
            "image_classification",
            "mae_vit_huge_p14",
            [],
            {"epochs": 50, "accum_iter": 32, "blr": 1e-3, "layer_decay": 0.75, "drop_path": 0.3},
        ),
        (
            "a smaller batch is accumulated to the same number of images",
            "masked_image_modeling",
            "mae_vit_base_p16",
            ["pretrain.batch_size=16", "device.ranks=2"],
            {"batch_size": 16, "accum_iter": 128},
        ),
        (
            "overrides take precedence",
            "image_classification",
            "mae_vit_huge_p14",
            ["finetune.accum_iter=3", "finetune.epochs=7"],
            {"epochs": 7, "accum_iter": 3, "drop_path": 0.3},
        ),
    ],
)  # fmt: skip
def test_without_a_config_the_published_recipe_applies(name, task, model, overrides, expected):
    config = Trainer(task, model, overrides=overrides).config
    recipe = getattr(config, config.task).model_dump()
    assert {key: recipe[key] for key in expected} == expected, name
    assert config.name == model
    assert config.device.target == "CPU"


def test_it_trains_with_the_stages_and_the_workspace_of_the_pipeline(pretrained, small, images, workspace, capsys):
    _, result = pretrained
    assert result.steps == 2 * (200 // 16)
    config = yaml.safe_load((result.run_dir / "config.yaml").read_text())
    assert config["model"] == small.model_dump(mode="json")
    index = load_index(config["data"]["records"])
    assert (index.splits["train"].images, index.splits["val"].images) == (200, 40)
    assert Path(config["data"]["records"]).parent == (workspace / "records").resolve()
    assert len(list((workspace / "datasets").iterdir())) == 1
    again = Trainer("masked_image_modeling", small, images, overrides=SHORT, workspace=workspace).train()
    assert again == result.model_copy(update={"reused": True})  # the parent folder has the same data


def test_it_predicts_with_the_trained_model(pretrained, small, images, workspace, tmp_path):
    trainer, result = pretrained
    picture = next((images / "val").rglob("*.JPEG"))
    later = Trainer("masked_image_modeling", small, images / "train", overrides=SHORT, workspace=workspace)
    found = [
        t.predict(predict_checkpoint=checkpoint, input_data=picture, save_dir=tmp_path)[0]
        for t, checkpoint in ((trainer, True), (later, True), (later, result.run_dir))
    ]
    assert len({f["info"] for f in found}) == 1
    for other in found[1:]:
        np.testing.assert_array_equal(np.asarray(found[0]["data"]), np.asarray(other["data"]))


@pytest.mark.usefixtures("in_process")
def test_it_evaluates_the_trained_model(pretrained):
    trainer, _ = pretrained
    found = trainer.evaluate(protocol="knn")
    assert [score.encoder for score in found.results] == ["pretrained", "random", "pixels"]
    assert found.results[0].images == 40
    assert trainer.evaluate(protocol="knn").reused


@pytest.mark.usefixtures("in_process")
def test_fine_tuning_starts_from_the_models_weights(pretrained, images, workspace, tmp_path):
    _, result = pretrained
    trainer = Trainer("image_classification", result.run_dir, images, overrides=TUNE, workspace=workspace)
    tuned = trainer.train()
    assert yaml.safe_load((tuned.run_dir / "config.yaml").read_text())["init"] == str(result.checkpoint.resolve())
    (score,) = trainer.evaluate().results
    assert score.images == 40
    best = trainer.predict(True, next((images / "val").rglob("*.JPEG")))[0]
    assert len(best) == 5
    assert {entry["label"] for entry in best} <= {folder.name for folder in (images / "train").iterdir()}


def test_train_and_val_may_be_in_different_folders(small, images, workspace, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(images / split, tmp_path / f"my-{split}-images")
    apart = [tmp_path / "my-train-images", tmp_path / "my-val-images"]
    trainer = Trainer("masked_image_modeling", small, *apart, overrides=SHORT, workspace=workspace / "apart")
    index = load_index(trainer._records())
    assert (index.splits["train"].images, index.splits["val"].images) == (200, 40)
    assert index.name == "my-train-images"


def test_a_share_of_class_folders_is_held_out(small, images, tmp_path):
    shutil.copytree(images / "train", tmp_path / "classes")
    trainer = Trainer("masked_image_modeling", small, tmp_path / "classes", workspace=tmp_path / "w")
    index = load_index(trainer._records())
    assert (index.splits["train"].images, index.splits["val"].images) == (180, 20)


def test_a_config_is_the_recipe(tiny_yaml, tiny, trained, records, tmp_path):
    workspace = trained.run_dir.parents[1]
    assert Trainer("masked_image_modeling", config=tiny_yaml, workspace=workspace).train().digest == trained.digest
    other = Trainer("masked_image_modeling", "mae_vit_large_p16", records, config=tiny_yaml, overrides=["seed=9"])
    assert other.config.pretrain == tiny.pretrain
    assert other.config.model.embed_dim == 1024
    assert other.config.seed == 9
    assert other._records() == records


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("unknown task", lambda m, y, p: Trainer("detection", m), "task: expected one of"),
        ("nothing", lambda m, y, p: Trainer(), "expected a model or a config"),
        ("unknown model", lambda m, y, p: Trainer(model="mae_vit_base_p61"), "did you mean mae_vit_base_p16"),
        ("unknown key", lambda m, y, p: Trainer(model=m, overrides=["pretrain.epoch=3"]), "did you mean epochs"),
        ("bad size", lambda m, y, p: Trainer(model=m, overrides=["model.patch_size=5"]), "multiple of patch_size"),
        ("bad batch", lambda m, y, p: Trainer(model=m, overrides=["pretrain.batch_size=0"]), "pretrain.batch_size"),
        (
            "config of the other task",
            lambda m, y, p: Trainer("image_classification", config=y, overrides=["task=pretrain"]),
            "expected task: finetune",
        ),
        ("no data", lambda m, y, p: Trainer(model=m, workspace=p).train(), "give train_dataset"),
        (
            "no such data",
            lambda m, y, p: Trainer(model=m, train_dataset=p / "none", workspace=p).train(),
            "expected a folder of images",
        ),
        (
            "no val data",
            lambda m, y, p: Trainer(model=m, train_dataset=p, eval_dataset=p / "x", workspace=p).train(),
            "expected a folder of images",
        ),
        ("no input", lambda m, y, p: Trainer(model=m).predict(), "input_data: expected an image"),
        ("sizes have no weights", lambda m, y, p: Trainer(model=m).predict(input_data="x.png"), "sizes only"),
    ],
)
def test_impossible_arguments_are_named(small, tiny_yaml, tmp_path, name, call, message):
    with pytest.raises(InputError) as error:
        call(small, tiny_yaml, tmp_path)
    assert message in str(error.value), name


def test_without_training_there_is_no_checkpoint(small, images, tmp_path):
    trainer = Trainer("masked_image_modeling", small, images, overrides=SHORT, workspace=tmp_path)
    with pytest.raises(InputError, match=r"call train\(\) first"):
        trainer.predict(True, next((images / "val").rglob("*.JPEG")))
    assert newest(tmp_path / "runs") is None


def test_a_data_set_smaller_than_the_published_batch_says_so(small, images, workspace):
    trainer = Trainer("masked_image_modeling", small, images, workspace=workspace)
    with pytest.raises(InputError, match=r"at most 200 training images.*set a smaller batch_size or accum_iter"):
        trainer.train()
