"""Checks of finished records: against their digests, and against the images they came from."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pyarrow.parquet as pq
import pytest

from datasets import sharding
from datasets.base.digests import file_checksum
from datasets.base.errors import InputError
from datasets.records import load_index
from datasets.validation.validate import validate

# Worker processes would each import MindSpore; test_shard_resume.py has them.
write_records = partial(sharding.write_records, workers=1)
check_records = partial(sharding.check_records, workers=1)
SHARD = "train/train-00000-of-00001.mindrecord"


@pytest.fixture(scope="module")
def original(tmp_path_factory, small_tree):
    base = tmp_path_factory.mktemp("records")
    validation = validate(small_tree(base / "root"), base / "validation")
    write_records(validation.directory, base / "records")
    return base


@pytest.fixture
def base(original, tmp_path):
    """A copy to damage: records/ and root/."""
    shutil.copytree(original, tmp_path / "base")
    return tmp_path / "base"


def test_intact(base):
    records = check_records(base / "records")
    assert records == check_records(base / "records", root=base / "root")
    assert (records.train, records.val, records.shards) == (7, 4, 2)
    assert records.digest == load_index(base / "records").result(base / "records", reused=True).digest


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FAULTS = {  # name: (damage, whether only root shows it, parts of the message)
    "no_directory": (
        lambda base: shutil.rmtree(base / "records"),
        False,
        ["index.json", "no such file", "mae data shard"],
    ),
    "index_damaged": (
        lambda base: (base / "records/index.json").write_text("[1]"),
        False,
        ["index.json", "damaged content"],
    ),
    "shard_changed": (lambda base: _flip(base / "records" / SHARD), False, [SHARD, "other content"]),
    "shard_missing": (lambda base: (base / "records" / SHARD).unlink(), False, [SHARD, "no such file"]),
    "database_missing": (
        lambda base: (base / "records" / f"{SHARD}.db").unlink(),
        False,
        [f"{SHARD}.db", "no such file"],
    ),
    "sources_changed": (
        lambda base: _flip(base / "records" / f"{SHARD}.sources.parquet"),
        False,
        [f"{SHARD}.sources.parquet", "other content"],
    ),
    "manifest_changed": (
        lambda base: _flip(base / "records/manifest.parquet"),
        False,
        ["manifest.parquet", "other content"],
    ),
    "source_changed": (
        lambda base: _flip(base / "root/val/cat/odd.jpg"),
        True,
        ["val/cat/odd.jpg", "mae data validate"],
    ),
    "source_missing": (
        lambda base: (base / "root/train/cat/1.jpg").unlink(),
        True,
        ["train/cat/1.jpg", "No such file"],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_fault_is_named(base, case):
    damage, needs_root, parts = FAULTS[case]
    damage(base)
    if needs_root:
        check_records(base / "records")
    with pytest.raises(InputError) as error:
        check_records(base / "records", root=base / "root" if needs_root else None)
    assert all(part in str(error.value) for part in parts), str(error.value)


def _first_row_twice(records):
    records[1] = records[0]


def _wrong_label(records):
    records[0]["label"] = 1 - records[0]["label"]


def _swapped_images(records):
    records[0]["image"], records[1]["image"] = records[1]["image"], records[0]["image"]


WRONG = {
    "record_twice": (_first_row_twice, "bytes of its source|expected label"),
    "record_added": (lambda records: records.append(records[0]), "expected 7 records, found 8"),
    "record_missing": (lambda records: records.pop(), "expected 7 records, found 6"),
    "wrong_label": (_wrong_label, "expected label"),
    "swapped_images": (_swapped_images, "bytes of its source"),
    "swapped_records": (lambda records: records.reverse(), "bytes of its source|expected label"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_record_with_right_digests(base, case):
    """What only the comparison with the source can show: a shard that was never right."""
    from mindspore.mindrecord import FileReader, FileWriter

    change, message = WRONG[case]
    path = base / "records" / SHARD
    reader = FileReader(str(path))
    records = list(reader.get_next())
    reader.close()
    change(records)
    path.unlink()
    path.with_name(f"{path.name}.db").unlink()
    writer = FileWriter(str(path), shard_num=1)
    writer.add_schema(load_index(base / "records").record_schema, "images")
    writer.write_raw_data(records)
    writer.commit()
    index = json.loads((base / "records/index.json").read_text())
    part = index["splits"]["train"]["shards"][0]
    part["digest"], part["database_digest"] = file_checksum(path), file_checksum(f"{path}.db")
    (base / "records/index.json").write_text(json.dumps(index))

    check_records(base / "records")
    with pytest.raises(InputError, match=message):
        check_records(base / "records", root=base / "root")


MISLED = {  # name: change of the table of sources, whose digest is then made right
    "another_image": lambda table: table.set_column(0, "path", [["train/cat/0.jpg"] * len(table)]),
    "another_class": lambda table: table.set_column(1, "class_name", [["dog"] * len(table)]),
    "image_left_out": lambda table: table.slice(1),
}


@pytest.mark.parametrize("case", MISLED)
def test_wrong_table_with_the_right_digest(base, case):
    """The shards must hold the images of the manifest, each once, whatever the tables beside them say."""
    path = base / "records" / f"{SHARD}.sources.parquet"
    pq.write_table(MISLED[case](pq.read_table(path)), path)
    index = json.loads((base / "records/index.json").read_text())
    index["splits"]["train"]["shards"][0]["sources_digest"] = file_checksum(path)
    (base / "records/index.json").write_text(json.dumps(index))
    check_records(base / "records")
    with pytest.raises(InputError, match="expected the images that the manifest gives it"):
        check_records(base / "records", root=base / "root")


def test_shard_left_out_of_the_index(base):
    index = json.loads((base / "records/index.json").read_text())
    index["splits"]["val"] = {"images": 0, "shards": []}
    (base / "records/index.json").write_text(json.dumps(index))
    check_records(base / "records")
    with pytest.raises(
        InputError, match=r"val-00000-of-00001\.mindrecord: expected the images that the manifest gives"
    ):
        check_records(base / "records", root=base / "root")
