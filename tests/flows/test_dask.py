"""The data stages on a real Dask cluster of this machine; one worker is killed at work."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow

import tasks.shard
from datasets.base.errors import InputError
from datasets.records import Records, load_index
from datasets.sample import unpack_sample
from datasets.sharding import check_records, write_records
from datasets.validation.validate import Validation, validate
from flows import stages
from flows.stages import spread
from mae.config.sections import DataConfig

distributed = pytest.importorskip("distributed")
pytest.importorskip("prefect_dask")
SHARDS = 7


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    base = tmp_path_factory.mktemp("dask")
    unpack_sample(base / "images", train_per_class=600, val_per_class=100)
    return validate(base / "images", base / "validation")


@pytest.fixture
def cluster() -> Iterator[object]:
    """A cluster of two worker processes with one thread each; their nannies restart them."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster


def contents(records: Records) -> dict[str, bytes]:
    """Return every file except stamps.json, which records when and where the records were made."""
    directory = records.directory
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "stamps.json"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_cluster_writes_the_same_shards_although_a_worker_is_killed(
    validation: Validation, workspace: Path, tmp_path: Path, cluster: object
) -> None:
    data = DataConfig(shard_mb=1, dask=cluster.scheduler_address)
    out = tasks.shard.directory(validation.directory, workspace, data)
    pids = {worker.pid for worker in cluster.workers.values()}
    assert len(pids) == 2
    victims: list[int] = []

    def kill_one_at_work() -> None:
        """SIGKILL a worker that writes a shard, when some shards are finished and some have not been started."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            finished = len(list(out.parent.glob(f"{out.name}.partial-*/entries/*.json")))
            if finished >= 2 and any(out.parent.glob(f"{out.name}.partial-*/attempts/*-of-*/*.mindrecord")):
                victims.append(min(pids))
                os.kill(victims[0], signal.SIGKILL)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=kill_one_at_work)
    thread.start()
    records = spread(stages.shard, data)(validation, workspace, data)
    thread.join()
    assert victims, "no worker was at work"
    expected = write_records(validation.directory, tmp_path / "here", shard_mb=1, seed=tasks.shard.SEED)
    assert contents(records) == contents(expected)
    assert check_records(records.directory, root=validation.root).shards == expected.shards == SHARDS
    assert {path.name for path in records.directory.parent.iterdir()} == {records.directory.name}


@pytest.mark.usefixtures("prefect_api")
def test_threads_of_this_machine_write_the_same(validation: Validation, workspace: Path, tmp_path: Path) -> None:
    data = DataConfig(shard_mb=3)
    records = spread(stages.shard, data)(validation, workspace, data)
    assert contents(records) == contents(write_records(validation.directory, tmp_path / "here", shard_mb=3))
    assert len(load_index(records.directory).all_shards()) == 3


def test_missing_extra_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(InputError, match=r"data\.dask: .*pip install -e '\.\[dask\]'"):
        spread(stages.shard, DataConfig(dask="tcp://127.0.0.1:1"))


@pytest.mark.usefixtures("prefect_api")
def test_first_failure_is_raised_after_the_others_have_ended() -> None:
    from prefect import task

    ended: list[int] = []

    @task(name="odd-ones-fail")
    def odd_ones_fail(number: int) -> int:
        time.sleep(0.3 * number)
        ended.append(number)
        if number == 1:
            raise ValueError("one")
        return number

    @flow
    def trial() -> list[int]:
        return stages.results(odd_ones_fail.map([0, 1, 2]))

    with pytest.raises(ValueError, match="one"):
        trial()
    assert sorted(ended) == [0, 1, 2]
