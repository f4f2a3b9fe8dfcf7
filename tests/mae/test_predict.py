"""Predictions: pictures and rows per image, the same for the same seed, nothing overwritten."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets.stage import InputError
from mae.config import ModelConfig
from mae.evaluate import evaluate
from mae.predict import image_files, load_image, predict, to_pixels, unpatchify


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
    assert predict(trained.run_dir, given, tmp_path / "again", seed=5).digest != ""
    other = pq.read_table(predict(trained.run_dir, given, tmp_path / "other", seed=6).table).to_pylist()
    assert [r["loss"] for r in other] != [r["loss"] for r in rows]


def test_images_of_one_name_have_pictures_of_their_own(trained, images, tmp_path):
    source = next((images / "val").rglob("*.JPEG"))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jpg").write_bytes(source.read_bytes())
    found = predict(trained.run_dir, [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert len({row["image_file"] for row in pq.read_table(found.table).to_pylist()}) == 2
    assert len(list((tmp_path / "out" / "reconstructions").iterdir())) == 2


def test_a_classifier_names_five_classes(trained, records, images, tiny, tmp_path):
    evaluate(trained.run_dir, records, protocol="finetune", config=tiny, workspace=tmp_path, out=tmp_path / "e")
    (run,) = (tmp_path / "runs").iterdir()
    found = predict(run, [images / "val"], tmp_path / "out")
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


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="expected images, found none"):
        image_files([tmp_path])


@pytest.mark.parametrize(
    ("name", "size", "crop_pct"),
    [
        ("wide", (90, 40), 0.875),
        ("tall", (40, 90), 0.875),
        ("small is enlarged", (10, 12), 1.0),
        ("exact", (32, 32), 1.0),
    ],
)
def test_an_image_is_resized_and_cropped_to_the_models_size(tmp_path, name, size, crop_pct):
    path = tmp_path / "image.png"
    Image.effect_noise(size, 50).convert("RGB").save(path)
    pixels = load_image(path, ModelConfig(image_size=32, crop_pct=crop_pct))
    assert pixels.shape == (32, 32, 3), name
    if name == "exact":
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))


def test_pixels_are_clipped_not_wrapped():
    assert to_pixels(np.full((1, 1, 3), 9.0)).tolist() == [[[255, 255, 255]]]
    assert to_pixels(np.full((1, 1, 3), -9.0)).tolist() == [[[0, 0, 0]]]


def test_unpatchify_puts_patches_in_rows():
    image = unpatchify(np.arange(4 * 12).reshape(4, 12), 2)
    assert image.shape == (4, 4, 3)
    assert image[0, 0].tolist() == [0, 1, 2]
    assert image[1, 1].tolist() == [9, 10, 11]
    assert image[0, 2].tolist() == [12, 13, 14]
    assert image[2, 0].tolist() == [24, 25, 26]
