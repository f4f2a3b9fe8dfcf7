"""A stage's result counts only while its files exist and are unchanged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import tasks.predict
import tasks.rank_table
import tasks.sample_data
import tasks.shard
import tasks.unpack
import tasks.validate
from datasets.base.digests import file_digest
from datasets.records import Records
from datasets.sample import unpack_sample
from datasets.sharding import write_records
from datasets.validation.validate import Validation
from flows.stages import checks, unchanged
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
    assert checks["validate"](validation.model_copy(update={"directory": copy})) == (damage is None)


@pytest.mark.parametrize("damage", [None, Path.unlink, change])
def test_rank_table_of_a_cpu_run(tmp_path: Path, damage: Callable[[Path], None] | None) -> None:
    result = tasks.rank_table.rank_table.fn(tmp_path, DeviceConfig(ranks=2), None)
    assert (result.servers, result.ranks, len(result.warnings) > 0) == (1, 2, True)
    if damage is not None:
        damage(result.path)
    assert checks["rank-table"](result) == (damage is None)


def test_rank_table_of_an_inventory(tmp_path: Path) -> None:
    device = DeviceConfig(target="Ascend", ranks=8)
    result = tasks.rank_table.rank_table.fn(tmp_path, device, Path("configs/cluster_example.yaml"))
    assert (result.servers, result.ranks) == (2, 16)
    assert tasks.rank_table.rank_table.fn(tmp_path, device, Path("configs/cluster_example.yaml")).reused


def test_page_names_every_fault(validation: Validation, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[tuple[object, ...]] = []
    monkeypatch.setattr(tasks.validate, "markdown", lambda *page: pages.append(page))
    found = validation.model_copy(update={"faults": {"corrupt": 1234}})
    tasks.validate.conclude.fn(SimpleNamespace(conclude=lambda _: found), [])
    assert pages[0][2:] == (("rows", "count"), ("train", "30"), ("val", "40"), ("corrupt", "1,234"))


def test_pictures_come_from_all_classes(validation: Validation) -> None:
    images = tasks.predict.validation_images(validation, count=10)
    assert [image.parent.name for image in images] == validation.classes
    assert len(tasks.predict.validation_images(validation, count=1000)) == validation.val


@pytest.mark.parametrize("damage", [None, Path.unlink, change])
def test_unchanged(tmp_path: Path, damage: Callable[[Path], None] | None) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    digest = file_digest(path)
    if damage is not None:
        damage(path)
    assert unchanged(path, digest) == (damage is None)


def test_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[tuple[object, ...]] = []
    monkeypatch.setattr(tasks.unpack, "markdown", lambda *page: pages.append(page))
    tar = tmp_path / "pets.tar"
    tar.write_bytes(pack({"cat/a.jpg": b"a", "dog/b.jpg": b"b", "README": b""}))
    root = tasks.unpack.images_root(tmp_path / "workspace", [tar], DATA)
    assert root.parent == tmp_path / "workspace/datasets"
    assert tasks.unpack.images_root(tmp_path, [tar], DATA.model_copy(update={"root": "/own"})) == Path("/own")
    result = tasks.unpack.unpack.fn([tar], root)
    assert checks["unpack"](result)
    assert "2 class folders" in str(pages[0][1])
    assert ("left out, outside the class folders", "1") in pages[0]
    shutil.rmtree(root)
    assert not checks["unpack"](result)
