"""MindRecord shards: what MindSpore reads back, their size, and when they are written again."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import sharding
from datasets.base.errors import InputError
from datasets.manifest.faults import DEFAULTS, parse_policy
from datasets.records import load_index, sources
from datasets.sharding import records_directory
from datasets.validation.options import ValidationOptions
from datasets.validation.validate import validate
from tests.datasets.conftest import read_manifest

# Worker processes would each import MindSpore; test_shard_resume.py has them.
write_records = partial(sharding.write_records, workers=1)
check_records = partial(sharding.check_records, workers=1)


@pytest.fixture(scope="module")
def validated(tmp_path_factory, small_tree):
    base = tmp_path_factory.mktemp("validated")
    return validate(small_tree(base / "root"), base / "validation")


def read_back(directory, split):
    """The records of a split as MindSpore's own pipeline gives them, in stored order, with the sources they have."""
    from mindspore.mindrecord import FileReader

    records = []
    for part in load_index(directory).splits[split].shards:
        reader = FileReader(str(directory / part.file), num_consumer=1)
        records += reader.get_next()
        reader.close()
    rows = sources(directory, split, list(range(len(records))))
    return [{**record, "source": row} for record, row in zip(records, rows, strict=True)]


def test_records_hold_the_images(validated, tmp_path):
    records = write_records(validated.directory, tmp_path / "out")
    assert (records.train, records.val, records.classes, records.reused) == (7, 4, ["cat", "dog"], False)
    rows = {row.path: row for row in read_manifest(tmp_path / "out/manifest.parquet")}
    for split, count in (("train", 7), ("val", 4)):
        stored = read_back(records.directory, split)
        paths = [record["source"].path for record in stored]
        assert sorted(paths) == sorted(path for path, row in rows.items() if row.split == split)
        assert len(stored) == count
        for record in stored:
            row = rows[record["source"].path]
            assert record["label"] == record["source"].label == {"cat": 0, "dog": 1}[row.class_name]
            assert (record["source"].digest, record["source"].bytes) == (row.digest, row.bytes)
            original = (validated.root / row.path).read_bytes()
            assert record["source"].converted == (row.status == "converted") == (record["image"] != original)
            if row.status == "converted":
                image = Image.open(io.BytesIO(record["image"]))
                assert (image.format, image.mode) == ("JPEG", "RGB")
                wanted = Image.open(io.BytesIO(original)).convert("RGB")
                assert np.abs(np.asarray(image, dtype=int) - np.asarray(wanted, dtype=int)).mean() < 6


def test_source_of_a_sample_that_is_none(validated, tmp_path):
    write_records(validated.directory, tmp_path / "out")
    for sample in (-1, 7):
        with pytest.raises(InputError, match=f"a sample number from 0 to 6 of train, found {sample}"):
            sources(tmp_path / "out", "train", [0, sample])


def test_mindspore_pipeline_decodes_the_renamed_directory(validated, tmp_path):
    """Shards are read under the final name, by another name than they were written with, and every kind decodes."""
    import mindspore.dataset as msd

    records = write_records(validated.directory, tmp_path / "out")
    moved = tmp_path / "moved here"
    shutil.move(records.directory, moved)
    files = [str(moved / part.file) for part in load_index(moved).splits["train"].shards]
    pipeline = msd.MindDataset(files, columns_list=["image", "label"], shuffle=False)
    pipeline = pipeline.map(msd.vision.Decode(), input_columns=["image"])
    decoded = list(pipeline.create_dict_iterator(num_epochs=1, output_numpy=True))
    assert [item["image"].shape for item in decoded] == [(32, 48, 3)] * 7
    assert decoded[0]["label"].dtype == np.int32


def test_index(validated, tmp_path):
    write_records(validated.directory, tmp_path / "out", seed=3)
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["schema"] == {"image": {"type": "bytes"}, "label": {"type": "int32"}}
    assert index["classes"] == ["cat", "dog"]
    assert index["manifest_digest"] == validated.manifest_digest
    convert = sorted(fault for fault, action in DEFAULTS.items() if action == "convert")
    assert index["options"] == {"shard_mb": 1024, "short_side": None, "seed": 3, "convert": convert}
    assert index["splits"]["train"]["images"] == 7
    assert set(index["splits"]["train"]["shards"][0]) == {
        *("file", "images", "bytes", "digest", "database_digest", "sources_digest")
    }


def test_files_are_readable_by_other_users(validated, tmp_path):
    """MindRecord makes its files 0600; a worker may run under another account."""
    write_records(validated.directory, tmp_path / "out")
    modes = {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {"0o644"}


def test_small_data_stays_small(validated, tmp_path):
    """11 images of 1 KB: 50 MB a shard at MindRecord's defaults."""
    write_records(validated.directory, tmp_path / "out")
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
    records = write_records(validation.directory, tmp_path / "out", shard_mb=1)
    parts = load_index(records.directory).splits["train"].shards
    assert records.shards == 4
    assert sum(part.images for part in parts) == 70
    stored = read_back(records.directory, "train")
    assert len({record["source"].path for record in stored}) == 70
    first = 0
    for part in parts:
        assert 15 <= part.images <= 32  # 70 in 3, by hash: expected 23.3 with a standard deviation of 3.9
        labels = Counter(record["label"] for record in stored[first : first + part.images])
        assert min(labels[0], labels[1]) >= 5
        first += part.images


def test_empty_shards_are_left_out(tmp_path, write_tree):
    """Two images that need two shards by their bytes, and whose hashes fall into one."""
    noise = np.random.default_rng(0)
    sides = {"train/a/0.png": 640, "train/a/1.png": 640, "val/a/0.png": 16}
    files = {}
    for name, side in sides.items():
        out = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, "PNG")
        files[name] = out.getvalue()
    validation = validate(write_tree(tmp_path / "root", files), tmp_path / "validation")
    counts = set()
    for seed in range(8):
        records = write_records(validation.directory, tmp_path / f"out{seed}", shard_mb=1, seed=seed)
        parts = load_index(records.directory).splits["train"].shards
        counts.add(len(parts))
        assert [part.file.rsplit("-", 1)[1] for part in parts] == ["00002.mindrecord"] * len(parts)
        assert sum(part.images for part in parts) == 2
        check_records(records.directory, root=validation.root)
    assert counts == {1, 2}


def test_order_depends_on_the_seed_alone(validated, tmp_path):
    first = write_records(validated.directory, tmp_path / "a", seed=1)
    again = write_records(validated.directory, tmp_path / "b", seed=1)
    other = write_records(validated.directory, tmp_path / "c", seed=2)
    assert first.digest == again.digest != other.digest
    order = [[record["source"].path for record in read_back(tmp_path / name, "train")] for name in "abc"]
    assert order[0] == order[1] != order[2]
    assert sorted(order[0]) == sorted(order[2])


def test_short_side(validated, tmp_path):
    write_records(validated.directory, tmp_path / "out", short_side=16)
    sizes = {Image.open(io.BytesIO(record["image"])).size for record in read_back(tmp_path / "out", "train")}
    assert sizes == {(24, 16)}


def test_converted_image_larger_than_its_source(tmp_path, write_tree):
    """A GIF of 2 kB whose RGB JPEG has hundreds: the page must fit what is stored, not what was read."""
    pixels = Image.fromarray((np.indices((900, 900)).sum(0) % 2 * 255).astype(np.uint8))
    out = io.BytesIO()
    pixels.save(out, "GIF")
    files = {"train/a/0.gif": out.getvalue(), "val/a/0.jpg": "rgb.jpg"}
    validation = validate(write_tree(tmp_path / "root", files), tmp_path / "validation")
    write_records(validation.directory, tmp_path / "out")
    (record,) = read_back(tmp_path / "out", "train")
    assert len(record["image"]) > 10 * len(out.getvalue())


def test_second_run_reuses(validated, tmp_path):
    first = write_records(validated.directory, tmp_path / "out")
    again = write_records(validated.directory, tmp_path / "out")
    assert again == first.model_copy(update={"reused": True})


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_moved_images_need_no_rewriting(tmp_path, small_tree):
    """The manifest holds relative paths and digests: the same images elsewhere give the same records."""
    validate(small_tree(tmp_path / "before"), tmp_path / "validation")
    write_records(tmp_path / "validation", tmp_path / "out")
    (tmp_path / "before").rename(tmp_path / "after")
    assert not validate(tmp_path / "after", tmp_path / "validation").reused
    assert write_records(tmp_path / "validation", tmp_path / "out").reused


def test_other_options_are_another_output(validated, tmp_path):
    options = {"shard_mb": 1024, "short_side": None, "seed": 0}
    directory = records_directory(tmp_path, validated.directory, **options)
    assert directory.parent == tmp_path / "records"
    assert directory.name.startswith("root-")
    for change in ({"shard_mb": 1}, {"short_side": 16}, {"seed": 1}):
        assert records_directory(tmp_path, validated.directory, **{**options, **change}) != directory
    write_records(validated.directory, tmp_path / "out")
    assert not write_records(validated.directory, tmp_path / "out", seed=1).reused


CHANGED_INPUT = {  # name: (change of (root, validation), part of the message)
    "file_changed": (lambda root, _: _flip(root / "train/cat/0.jpg"), "train/cat/0.jpg: expected the validated file"),
    "file_removed": (lambda root, _: (root / "val/dog/0.jpg").unlink(), "No such file"),
    "manifest_changed": (lambda _, validation: _flip(validation / "manifest.parquet"), "changed since it was written"),
    "validation_removed": (lambda _, validation: shutil.rmtree(validation), "validation.json"),
}


@pytest.mark.parametrize("case", CHANGED_INPUT)
def test_changed_input_is_an_error(tmp_path, small_tree, case):
    change, message = CHANGED_INPUT[case]
    root = small_tree(tmp_path / "root")
    validate(root, tmp_path / "validation")
    change(root, tmp_path / "validation")
    with pytest.raises(InputError) as error:
        write_records(tmp_path / "validation", tmp_path / "out")
    assert message in str(error.value)
    assert "mae data validate" in str(error.value)
    assert not list(tmp_path.glob("out.partial-*/attempts/*-of-*-*")), "a part of a shard"
    assert not (tmp_path / "out.lock").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"shard_mb": 0}, {"short_side": 0}])
def test_options_out_of_range(validated, tmp_path, options):
    with pytest.raises(InputError, match="expected at least 1, found 0"):
        write_records(validated.directory, tmp_path / "out", **options)


def test_foreign_output_is_kept(validated, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="which would be lost"):
        write_records(validated.directory, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_what_is_converted_is_as_the_policy_says(tmp_path, write_tree):
    files = {"a/grey.jpg": "grey.jpg", "a/cmyk.jpg": "cmyk.jpg", "a/rgb.jpg": "rgb.jpg"}
    root = write_tree(
        tmp_path / "images", {f"{split}/{path}": kind for split in ("train", "val") for path, kind in files.items()}
    )
    stored = {}
    for name, settings in (("default", []), ("other", ["grey=convert", "cmyk=exclude"])):
        found = validate(root, tmp_path / name, options=ValidationOptions(policy=parse_policy(settings)))
        records = write_records(found.directory, tmp_path / f"{name} records").directory
        check_records(records, root=root)
        rows = sources(records, "val", list(range(load_index(records).splits["val"].images)))
        stored[name] = {Path(row.path).stem: row.converted for row in rows}
    assert stored["default"] == {"grey": False, "cmyk": True, "rgb": False}
    assert stored["other"] == {"grey": True, "rgb": False}
