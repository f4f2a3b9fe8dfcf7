"""Predictions: a row and a picture per image, the same for the same seed; earlier ones are kept."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from mae.config.sections import ModelConfig
from mae.model.card import ModelCard
from mae.prediction import predict, predictors
from mae.prediction.predictors import from_patches, to_patches, to_pixels
from mae.runs.checkpoint import MODEL
from mae.runs.model_file import load_weights, model_digest
from mae.weights import convert, restore
from tests.mae.made_weights import random_weights
from tests.mae.servers import Served


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(in_process):
    """Load and compile each model once for all tests of this file."""
    original = restore.load_model
    load = functools.cache(lambda path, _digest: original(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "load_model", lambda path: load(path, model_digest(path)))
        patch.setattr(predictors, "Reconstructor", functools.cache(predictors.Reconstructor))
        yield


@pytest.fixture(scope="module")
def classifier(tiny, tmp_path_factory):
    """A classifier of 10 classes with random weights."""
    card = ModelCard(kind="classifier", model=tiny.model, classes=[f"class {number}" for number in range(10)])
    path = tmp_path_factory.mktemp("classifier") / "model.safetensors"
    save_file(random_weights(card), path, metadata={"maeflow": card.model_dump_json()})
    return path


def test_reconstructions_show_original_masked_and_filled(trained, images, tmp_path):
    given = sorted((images / "val").rglob("*.JPEG"))[:3]
    found = predict(trained.run_dir, given, tmp_path, seed=5)
    rows = pq.read_table(found.table).to_pylist()
    assert [row["path"] for row in rows] == [str(path) for path in given]
    for row, path in zip(rows, given, strict=True):
        picture = np.asarray(Image.open(tmp_path / row["image_file"]))
        original, masked, filled = np.split(picture, 3, axis=1)
        np.testing.assert_array_equal(original, np.asarray(Image.open(path).convert("RGB")))
        removed = (masked == 127).all(-1)
        assert removed.mean() >= 0.75  # 12 of 16 patches
        np.testing.assert_array_equal(masked[~removed], original[~removed])
        np.testing.assert_array_equal(filled[~removed], original[~removed])
        assert row["mask_ratio"] == 0.75
        assert row["true_patch_statistics"] is True
        assert 0 < row["loss"] < 3
    again = predict(trained.run_dir, given, tmp_path, seed=5)
    assert again == found.model_copy(update={"reused": True})
    other = pq.read_table(predict(trained.run_dir, given, tmp_path / "other", seed=6).table).to_pylist()
    assert [r["loss"] for r in other] != [r["loss"] for r in rows]


def test_images_with_the_same_name_have_different_pictures(trained, images, tmp_path):
    source = next((images / "val").rglob("*.JPEG"))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jpg").write_bytes(source.read_bytes())
    found = predict(trained.run_dir, [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert len({row["image_file"] for row in pq.read_table(found.table).to_pylist()}) == 2
    assert len(list((tmp_path / "out" / "reconstructions").iterdir())) == 2


def test_a_classifier_names_five_classes(classifier, images, tmp_path):
    found = predict(classifier, [images / "val"], tmp_path / "out")
    rows = pq.read_table(found.table).to_pylist()
    assert found.pictures is None
    assert len(rows) == 40
    for row in rows:
        assert len(set(row["classes"])) == 5
        assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
        assert 0 < sum(row["probabilities"]) <= 1 + 1e-6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text", b"no image", "expected an image"),
        ("truncated", None, "expected an image"),
    ],
)
def test_an_unreadable_image_is_named_and_nothing_is_written(trained, images, tmp_path, name, content, message):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content or next((images / "val").rglob("*.JPEG")).read_bytes()[:200])
    with pytest.raises(InputError, match=message) as error:
        predict(trained.run_dir, [path], tmp_path / "out")
    assert str(path) in str(error.value), name
    assert not list((tmp_path / "out").glob("*"))


def test_pixels_are_clipped_not_wrapped():
    assert to_pixels(np.full((1, 1, 3), 9.0), ModelConfig()).tolist() == [[[255, 255, 255]]]
    assert to_pixels(np.full((1, 1, 3), -9.0), ModelConfig()).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("grid", [(2, 2), (1, 3), (3, 2)])
def test_from_patches_inverts_to_patches(grid):
    pixels = np.arange(grid[0] * 2 * grid[1] * 2 * 3).reshape(grid[0] * 2, grid[1] * 2, 3)
    patches = to_patches(pixels, 2)
    assert patches[1].tolist() == pixels[:2, 2:4].ravel().tolist()  # the second patch of the first row
    np.testing.assert_array_equal(from_patches(patches, 2, grid), pixels)


def table(found):
    return pq.read_table(found.table).to_pylist()


def test_later_calls_add_rows_and_pictures(trained, images, tmp_path):
    given = sorted((images / "val").rglob("*.JPEG"))
    first = predict(trained.run_dir, given[:3], tmp_path)
    pictures = {p: p.read_bytes() for p in first.pictures.iterdir()}
    rows = table(first)
    second = predict(trained.run_dir, given[2:5], tmp_path, seed=0)
    assert (second.images, second.reused) == (3, False)
    third = predict(trained.run_dir, given[:1], tmp_path, seed=1)
    found = table(third)
    assert found[:3] == rows
    assert [(r["path"], r["seed"]) for r in found[3:]] == [(str(given[3]), 0), (str(given[4]), 0), (str(given[0]), 1)]
    for path, content in pictures.items():
        assert path.read_bytes() == content
    assert len(list(first.pictures.iterdir())) == len(found) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions.parquet", "reconstructions"]
    assert predict(trained.run_dir, given[:5], tmp_path).reused


def test_a_changed_image_keeps_its_earlier_picture(trained, images, tmp_path):
    one, other = sorted((images / "val").rglob("*.JPEG"))[:2]
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(one.read_bytes())
    earlier = table(predict(trained.run_dir, [photo], tmp_path / "out"))[0]
    photo.write_bytes(other.read_bytes())
    rows = table(predict(trained.run_dir, [photo], tmp_path / "out"))
    assert rows[0] == earlier
    assert rows[1]["image_file"] != earlier["image_file"]
    assert (tmp_path / "out" / earlier["image_file"]).is_file()


def test_a_mask_depends_on_seed_and_content_not_on_the_order(trained, images, tmp_path):
    given = sorted((images / "val").rglob("*.JPEG"))[:3]
    together = table(predict(trained.run_dir, given, tmp_path / "a"))
    alone = table(predict(trained.run_dir, given[2:], tmp_path / "b"))
    assert alone == together[2:]


@pytest.mark.parametrize("damage", ["a newer version of the code", "a missing picture", "a changed picture"])
def test_outdated_or_damaged_predictions_are_replaced(trained, images, tmp_path, monkeypatch, damage):
    given = sorted((images / "val").rglob("*.JPEG"))[:2]
    found = predict(trained.run_dir, given, tmp_path)
    rows, picture = table(found), tmp_path / table(found)[0]["image_file"]
    content = picture.read_bytes()
    if damage == "a newer version of the code":
        monkeypatch.setattr(sys.modules["mae.prediction.predict"], "VERSION", 1000)
        rows = [{**row, "version": 1000} for row in rows]
    elif damage == "a missing picture":
        picture.unlink()
    else:
        picture.write_bytes(content[:-1])
    again = predict(trained.run_dir, given, tmp_path)
    assert (again.reused, again.images) == (False, 2)
    assert table(again) == rows
    assert picture.read_bytes() == content


def test_a_changed_hugging_face_config_predicts_again(trained, images, tmp_path):
    folder = tmp_path / "hf"
    convert(trained.run_dir, folder)
    save_file(load_weights(folder / MODEL), folder / MODEL)  # without our card, which would take precedence
    given = sorted((images / "val").rglob("*.JPEG"))[:1]
    (first,) = table(predict(folder, given, tmp_path / "out"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    rows = table(predict(folder, given, tmp_path / "out"))
    assert rows[0] == first
    assert len(rows) == 2
    assert rows[1]["loss"] != first["loss"]
    assert predict(folder, given, tmp_path / "out").reused


def test_a_process_hashes_a_model_file_once(classifier, images, tmp_path, monkeypatch):
    """Finding, loading and predicting each need the digest of the model file."""
    model = Path(shutil.copy(classifier, tmp_path))
    hashed = []

    def counted(path):
        hashed.append(Path(path))
        return file_digest(path)

    for module in ("mae.runs.checkpoint", "mae.weights.convert", "mae.prediction.predict"):
        monkeypatch.setattr(sys.modules[module], "file_digest", counted, raising=False)
    given = sorted((images / "val").rglob("*.JPEG"))[:2]
    predict(model, given[:1], tmp_path / "a")
    predict(model, given[1:], tmp_path / "b")
    assert hashed.count(model) == 1


def test_predictions_of_the_other_kind_are_not_mixed(trained, classifier, images, tmp_path):
    given = sorted((images / "val").rglob("*.JPEG"))[:2]
    first = predict(trained.run_dir, given, tmp_path / "out")
    with pytest.raises(InputError, match="choose another output directory"):
        predict(classifier, given, tmp_path / "out")
    assert first.table.is_file()
    assert predict(trained.run_dir, given, tmp_path / "out").digest == first.digest


def test_an_address_is_an_image_too(trained, images, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    path = next((images / "val").rglob("*.JPEG"))
    with Served(path.parent) as server:
        address = f"{server.url}/{path.name}"
        (row,) = table(predict(trained.run_dir, [address], tmp_path / "a"))
    (same,) = table(predict(trained.run_dir, [path], tmp_path / "b"))
    assert row["path"] == address
    assert (row["loss"], row["image_digest"]) == (same["loss"], same["image_digest"])


def test_two_processes_add_to_one_table(trained, images, tmp_path):
    given = sorted((images / "val").rglob("*.JPEG"))[:4]
    code = "import sys; from mae.prediction import predict; predict(sys.argv[1], sys.argv[2:-1], sys.argv[-1])"
    runs = [
        subprocess.Popen([sys.executable, "-c", code, trained.run_dir, *some, tmp_path])
        for some in (given[:2], given[2:])
    ]
    assert [run.wait(120) for run in runs] == [0, 0]
    assert predict(trained.run_dir, given, tmp_path).reused
