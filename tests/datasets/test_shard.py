"""MindRecord shards: what MindSpore reads back, their size, and when they are written again."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from datasets.manifest import read_manifest
from datasets.records import load_index
from datasets.shard import records_directory, shard
from datasets.stage import InputError
from datasets.validate import validate


@pytest.fixture(scope="module")
def validated(tmp_path_factory, small_tree):
    base = tmp_path_factory.mktemp("validated")
    return validate(small_tree(base / "root"), base / "validation")


def read_back(directory, split):
    """The records of a split as MindSpore's own pipeline gives them, in stored order."""
    from mindspore.mindrecord import FileReader

    records = []
    for part in load_index(directory).splits[split].shards:
        reader = FileReader(str(directory / part.file))
        records.extend(reader.get_next())
        reader.close()
    return records


def test_records_hold_the_images(validated, tmp_path):
    records = shard(validated.directory, tmp_path / "out")
    assert (records.train, records.val, records.classes, records.reused) == (7, 4, ["cat", "dog"], False)
    rows = read_manifest(tmp_path / "out/manifest.parquet")
    for split, count in (("train", 7), ("val", 4)):
        stored = read_back(records.directory, split)
        assert sorted(record["row"] for record in stored) == [n for n, row in enumerate(rows) if row.split == split]
        assert len(stored) == count
        for record in stored:
            row = rows[record["row"]]
            assert record["label"] == {"cat": 0, "dog": 1}[row.class_name]
            source = (validated.root / row.path).read_bytes()
            if row.status == "ok":
                assert record["image"] == source
            else:
                image = Image.open(io.BytesIO(record["image"]))
                assert (image.format, image.mode) == ("JPEG", "RGB")
                original = Image.open(io.BytesIO(source)).convert("RGB")
                assert np.abs(np.asarray(image, dtype=int) - np.asarray(original, dtype=int)).mean() < 6


def test_mindspore_pipeline_decodes_the_renamed_directory(validated, tmp_path):
    """Shards are read under the final name, by another name than they were written with, and every kind decodes."""
    import mindspore.dataset as msd

    records = shard(validated.directory, tmp_path / "out")
    moved = tmp_path / "moved here"
    shutil.move(records.directory, moved)
    files = [str(moved / part.file) for part in load_index(moved).splits["train"].shards]
    pipeline = msd.MindDataset(files, columns_list=["image", "label", "row"], shuffle=False)
    pipeline = pipeline.map(msd.vision.Decode(), input_columns=["image"])
    decoded = list(pipeline.create_dict_iterator(num_epochs=1, output_numpy=True))
    assert [item["image"].shape for item in decoded] == [(32, 48, 3)] * 7
    assert decoded[0]["label"].dtype == decoded[0]["row"].dtype == np.int32


def test_index(validated, tmp_path):
    shard(validated.directory, tmp_path / "out", seed=3)
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["schema"] == {"image": {"type": "bytes"}, "label": {"type": "int32"}, "row": {"type": "int32"}}
    assert index["classes"] == ["cat", "dog"]
    assert index["manifest_digest"] == validated.manifest_digest
    assert index["options"] == {"shard_mb": 1024, "short_side": None, "seed": 3}
    assert index["splits"]["train"]["images"] == 7
    assert set(index["splits"]["train"]["shards"][0]) == {"file", "images", "bytes", "digest", "database_digest"}


def test_files_are_readable_by_other_users(validated, tmp_path):
    """MindRecord makes its files 0600; a worker may run under another account."""
    shard(validated.directory, tmp_path / "out")
    modes = {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {"0o644"}


def test_small_data_stays_small(validated, tmp_path):
    """11 images of 1 KB: 50 MB a shard at MindRecord's defaults."""
    shard(validated.directory, tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) < 500_000


def test_shards_are_fair_samples(tmp_path, write_tree):
    """Files of 40 kB in folder order a, b: three shards, each with its share of both classes."""
    noise = np.random.default_rng(0)

    def png() -> bytes:
        out = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (115, 115, 3), dtype=np.uint8)).save(out, "PNG")
        return out.getvalue()

    files = {f"train/{c}/{i}.png": png() for c in "ab" for i in range(35)} | {"val/a/0.png": png()}
    validation = validate(write_tree(tmp_path / "root", files), tmp_path / "validation")
    records = shard(validation.directory, tmp_path / "out", shard_mb=1)
    parts = load_index(records.directory).splits["train"].shards
    assert [part.images for part in parts] == [23, 23, 24]
    assert records.shards == 4
    assert all(part.bytes < 1.4e6 for part in parts)
    stored = read_back(records.directory, "train")
    assert len({record["row"] for record in stored}) == 70
    for start in (0, 23, 46):
        labels = Counter(record["label"] for record in stored[start : start + 23])
        assert min(labels[0], labels[1]) >= 5


def test_order_depends_on_the_seed_alone(validated, tmp_path):
    first = shard(validated.directory, tmp_path / "a", seed=1)
    again = shard(validated.directory, tmp_path / "b", seed=1)
    other = shard(validated.directory, tmp_path / "c", seed=2)
    assert first.digest == again.digest != other.digest
    order = [[record["row"] for record in read_back(tmp_path / name, "train")] for name in "abc"]
    assert order[0] == order[1] != order[2]
    assert sorted(order[0]) == sorted(order[2])


def test_short_side(validated, tmp_path):
    shard(validated.directory, tmp_path / "out", short_side=16)
    sizes = {Image.open(io.BytesIO(record["image"])).size for record in read_back(tmp_path / "out", "train")}
    assert sizes == {(24, 16)}


def test_converted_image_larger_than_its_source(tmp_path, write_tree):
    """A GIF of 2 kB whose RGB JPEG has hundreds: the page must fit what is stored, not what was read."""
    pixels = Image.fromarray((np.indices((900, 900)).sum(0) % 2 * 255).astype(np.uint8))
    out = io.BytesIO()
    pixels.save(out, "GIF")
    files = {"train/a/0.gif": out.getvalue(), "val/a/0.jpg": "rgb.jpg"}
    validation = validate(write_tree(tmp_path / "root", files), tmp_path / "validation")
    shard(validation.directory, tmp_path / "out")
    (record,) = read_back(tmp_path / "out", "train")
    assert len(record["image"]) > 10 * len(out.getvalue())


def test_second_run_reuses(validated, tmp_path):
    first = shard(validated.directory, tmp_path / "out")
    again = shard(validated.directory, tmp_path / "out")
    assert again == first.model_copy(update={"reused": True})


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {  # name: (what happens to the output, what the log says)
    "shard_changed": (lambda out: _flip(out / "train/train-00000-of-00001.mindrecord"), "mindrecord: other content"),
    "shard_removed": (lambda out: (out / "val/val-00000-of-00001.mindrecord").unlink(), "mindrecord: no such file"),
    "database_changed": (
        lambda out: _flip(out / "train/train-00000-of-00001.mindrecord.db"),
        "mindrecord.db: other content",
    ),
    "manifest_changed": (lambda out: _flip(out / "manifest.parquet"), "manifest.parquet: other content"),
    "index_damaged": (lambda out: (out / "index.json").write_text("{}"), "damaged content"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_repaired_and_logged(validated, tmp_path, caplog, case):
    damage, message = DAMAGE[case]
    first = shard(validated.directory, tmp_path / "out")
    damage(tmp_path / "out")
    again = shard(validated.directory, tmp_path / "out")
    assert again == first
    assert "writing the records again" in caplog.text
    assert message in caplog.text


def test_moved_images_need_no_rewriting(tmp_path, small_tree):
    """The manifest holds relative paths and digests: the same images elsewhere give the same records."""
    validate(small_tree(tmp_path / "before"), tmp_path / "validation")
    shard(tmp_path / "validation", tmp_path / "out")
    (tmp_path / "before").rename(tmp_path / "after")
    assert not validate(tmp_path / "after", tmp_path / "validation").reused
    assert shard(tmp_path / "validation", tmp_path / "out").reused


def test_other_options_are_another_output(validated, tmp_path):
    options = {"shard_mb": 1024, "short_side": None, "seed": 0}
    directory = records_directory(tmp_path, validated.directory, **options)
    assert directory.parent == tmp_path / "records"
    assert directory.name.startswith("root-")
    for change in ({"shard_mb": 1}, {"short_side": 16}, {"seed": 1}):
        assert records_directory(tmp_path, validated.directory, **{**options, **change}) != directory
    shard(validated.directory, tmp_path / "out")
    assert not shard(validated.directory, tmp_path / "out", seed=1).reused


CHANGED_INPUT = {  # name: (change of (root, validation), part of the message)
    "file_changed": (lambda root, _: _flip(root / "train/cat/0.jpg"), "train/cat/0.jpg: expected the validated file"),
    "file_removed": (lambda root, _: (root / "val/dog/0.jpg").unlink(), "No such file"),
    "manifest_changed": (lambda _, validation: _flip(validation / "manifest.parquet"), "changed since it was written"),
    "validation_removed": (lambda _, validation: shutil.rmtree(validation), "no readable validation.json"),
}


@pytest.mark.parametrize("case", CHANGED_INPUT)
def test_changed_input_is_an_error(tmp_path, small_tree, case):
    change, message = CHANGED_INPUT[case]
    root = small_tree(tmp_path / "root")
    validate(root, tmp_path / "validation")
    change(root, tmp_path / "validation")
    with pytest.raises(InputError) as error:
        shard(tmp_path / "validation", tmp_path / "out")
    assert message in str(error.value)
    assert "mae data validate" in str(error.value)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("options", [{"shard_mb": 0}, {"short_side": 0}])
def test_options_out_of_range(validated, tmp_path, options):
    with pytest.raises(InputError, match="expected at least 1, found 0"):
        shard(validated.directory, tmp_path / "out", **options)


def test_foreign_output_is_kept(validated, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="which would be lost"):
        shard(validated.directory, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
