"""Predictions: pictures and rows per image, the same for the same seed, nothing overwritten."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets.stage import InputError
from mae.evaluate import evaluate
from mae.inference import from_patches, to_patches, to_pixels
from mae.predict import predict


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


def test_pixels_are_clipped_not_wrapped():
    assert to_pixels(np.full((1, 1, 3), 9.0)).tolist() == [[[255, 255, 255]]]
    assert to_pixels(np.full((1, 1, 3), -9.0)).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("grid", [(2, 2), (1, 3), (3, 2)])
def test_patches_of_any_grid_go_back_to_their_places(grid):
    pixels = np.arange(grid[0] * 2 * grid[1] * 2 * 3).reshape(grid[0] * 2, grid[1] * 2, 3)
    patches = to_patches(pixels, 2)
    assert patches[1].tolist() == pixels[:2, 2:4].ravel().tolist()  # the second patch of the first row
    np.testing.assert_array_equal(from_patches(patches, 2, grid), pixels)
