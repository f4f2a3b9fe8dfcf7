"""The shipped sample as folders of JPEG."""

from __future__ import annotations

import io
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets import sample
from datasets.base.errors import InputError
from datasets.sample import sample_root, unpack_sample

FEW = {"train_per_class": 3, "val_per_class": 2}


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return unpack_sample(tmp_path_factory.mktemp("few") / "sample", **FEW).root


@pytest.fixture
def copy(few, tmp_path):
    shutil.copytree(few, tmp_path / "sample")
    return tmp_path / "sample"


def test_whole_sample(tmp_path):
    first = unpack_sample(tmp_path / "sample")
    assert (first.train, first.val, first.reused) == (6000, 1000, False)
    for split, count in (("train", 600), ("val", 100)):
        folders = sorted((first.root / split).iterdir())
        assert len(folders) == 10
        assert {len(list(folder.glob("*.JPEG"))) for folder in folders} == {count}
    start = time.perf_counter()
    assert unpack_sample(tmp_path / "sample").reused
    assert time.perf_counter() - start < 2  # 0.2 s on a quiet machine: every byte is read and compared


def test_files_are_jpeg_of_the_same_pictures(few):
    rows = pq.read_table(sample._SAMPLES / f"{sample.NAME}.parquet").to_pylist()
    pngs = [row["image"] for row in rows if (row["split"], row["class_name"]) == ("val", "sneaker")]
    for number, png in enumerate(pngs[:2]):
        image = Image.open(few / f"val/sneaker/sneaker_{number:04d}.JPEG")
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (28, 28))
        original = np.asarray(Image.open(io.BytesIO(png)), dtype=int)
        assert np.abs(np.asarray(image, dtype=int) - original).mean() < 3


def test_licence_travels_along(few):
    assert "2017 Zalando SE" in (few / "LICENSE.txt").read_text()


def test_same_bytes_every_time(few, tmp_path):
    unpack_sample(tmp_path / "again", **FEW)
    assert contents(tmp_path / "again") == contents(few)


DAMAGE = {
    "image_removed": lambda root: (root / "train/bag/bag_0001.JPEG").unlink(),
    "image_truncated": lambda root: (root / "train/bag/bag_0001.JPEG").write_bytes(b"\xff\xd8"),
    "image_swapped": lambda root: shutil.copy(root / "train/bag/bag_0001.JPEG", root / "train/bag/bag_0002.JPEG"),
    "class_removed": lambda root: shutil.rmtree(root / "val/bag"),
    "licence_removed": lambda root: (root / "LICENSE.txt").unlink(),
    "marker_damaged": lambda root: (root / "sample.json").write_text("{"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_repaired(few, copy, caplog, case):
    DAMAGE[case](copy)
    assert not unpack_sample(copy, **FEW).reused
    assert "unpacking the sample again" in caplog.text
    assert contents(copy) == contents(few)
    assert unpack_sample(copy, **FEW).reused


def test_other_counts_are_another_folder(copy):
    result = unpack_sample(copy, train_per_class=1, val_per_class=1)
    assert (result.train, result.val, result.reused) == (10, 10, False)
    assert len(list(copy.rglob("*.JPEG"))) == 20


@pytest.mark.parametrize("name", ["notes.txt", "train/bag/mine.JPEG", "train/mine/mine_0000.png"])
def test_foreign_files_are_kept(tmp_path, copy, name):
    """Neither a folder of somebody's own nor files that were added to ours are ever removed."""
    for root in (tmp_path / "own", copy):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        before = contents(root)
        with pytest.raises(InputError):
            unpack_sample(root, **FEW)
        assert contents(root) == before


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train_per_class": 0}, "train_per_class: expected 1 to 600 images a class, found 0"),
        ({"val_per_class": 101}, "val_per_class: expected 1 to 100 images a class, found 101"),
    ],
)
def test_counts_out_of_range(tmp_path, counts, message):
    with pytest.raises(InputError, match=message):
        unpack_sample(tmp_path / "sample", **counts)
    assert not (tmp_path / "sample").exists()


def test_sample_root(tmp_path):
    assert sample_root(tmp_path) == tmp_path / "datasets" / "fashion-mnist-7k"
