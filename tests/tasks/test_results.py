"""What makes a stage's result one: its files are there and are those that were written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tasks.predict
import tasks.rank_table
import tasks.sample_data
import tasks.shard
import tasks.unpack
import tasks.validate
from datasets.records import Records
from datasets.sample import unpack_sample
from datasets.sharding import write_records
from datasets.validation.validate import Validation
from mae.config.sections import DataConfig, DeviceConfig
from tests.datasets.tars import pack

DATA = DataConfig(shard_mb=1)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def validation(workspace: Path) -> Validation:
    unpack_sample(workspace / "tiny", train_per_class=3, val_per_class=4)
    plan = tasks.validate.plan.fn(workspace / "tiny", workspace, DATA)
    return tasks.validate.conclude.fn(plan, [tasks.validate.examine.fn(unit) for unit in plan.units])


@pytest.fixture(scope="module")
def records(workspace: Path, validation: Validation) -> Records:
    out = tasks.shard.directory(validation.directory, workspace, DATA)
    return write_records(validation.directory, out, shard_mb=DATA.shard_mb, seed=tasks.shard.SEED)


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        pytest.param(None, None, id="whole"),
        pytest.param(Path.unlink, "index.json", id="no-index"),
        pytest.param(Path.unlink, "train/*.mindrecord", id="no-shard"),
        pytest.param(Path.unlink, "val/*.db", id="no-database"),
    ],
)
def test_records(tmp_path: Path, records: Records, damage: Callable[[Path], None] | None, file: str | None) -> None:
    copy = Path(shutil.copytree(records.directory, tmp_path / "copy"))
    if damage is not None and file is not None:
        damage(next(copy.glob(file)))
    assert tasks.shard.intact(records.model_copy(update={"directory": copy})) == (damage is None)


def test_records_of_other_images(records: Records) -> None:
    assert not tasks.shard.intact(records.model_copy(update={"digest": "another"}))


@pytest.mark.parametrize("damage", [None, Path.unlink, change])
def test_validation(tmp_path: Path, validation: Validation, damage: Callable[[Path], None] | None) -> None:
    copy = Path(shutil.copytree(validation.directory, tmp_path / "copy"))
    if damage is not None:
        damage(copy / "manifest.parquet")
    assert tasks.validate.intact(validation.model_copy(update={"directory": copy})) == (damage is None)


@pytest.mark.parametrize("damage", [None, Path.unlink, change])
def test_rank_table_of_a_cpu_run(tmp_path: Path, damage: Callable[[Path], None] | None) -> None:
    result = tasks.rank_table.rank_table.fn(tmp_path, DeviceConfig(ranks=2), None)
    assert (result.servers, result.ranks, len(result.warnings) > 0) == (1, 2, True)
    if damage is not None:
        damage(result.path)
    assert tasks.rank_table.intact(result) == (damage is None)


def test_rank_table_of_an_inventory(tmp_path: Path) -> None:
    device = DeviceConfig(target="Ascend", ranks=8)
    result = tasks.rank_table.rank_table.fn(tmp_path, device, Path("configs/cluster_example.yaml"))
    assert (result.servers, result.ranks) == (2, 16)
    assert tasks.rank_table.rank_table.fn(tmp_path, device, Path("configs/cluster_example.yaml")).reused


def test_counts_name_every_fault(validation: Validation) -> None:
    page = tasks.validate.counts(validation.model_copy(update={"faults": {"corrupt": 1234}}))
    assert "| corrupt | 1,234 |" in page
    assert "| train | 30 |" in page


def test_pictures_come_from_all_classes(validation: Validation) -> None:
    images = tasks.predict.validation_images(validation, count=10)
    assert [image.parent.name for image in images] == validation.classes
    assert len(tasks.predict.validation_images(validation, count=1000)) == validation.val


def test_unpacked(tmp_path: Path) -> None:
    tar = tmp_path / "pets.tar"
    tar.write_bytes(pack({"cat/a.jpg": b"a", "dog/b.jpg": b"b", "README": b""}))
    root = tasks.unpack.images_root(tmp_path / "workspace", [tar], DATA)
    assert root.parent == tmp_path / "workspace/datasets"
    assert tasks.unpack.images_root(tmp_path, [tar], DATA.model_copy(update={"root": "/own"})) == Path("/own")
    result = tasks.unpack.unpack.fn([tar], root)
    assert tasks.unpack.intact(result)
    assert "2 class folders" in tasks.unpack.counts(result)
    assert "| left out, outside of class folders | 1 |" in tasks.unpack.counts(result)
    shutil.rmtree(root)
    assert not tasks.unpack.intact(result)
