"""A shard that is damaged before training or under it: it is named, and after mending the run goes on as if not."""

import os
import shutil
import threading
import time

import pytest

from datasets.base.errors import InputError
from datasets.sharding import write_records
from mae.runs.run import Run
from mae.train import train
from tests.mae.made_runs import lines, steps, with_

SHARD = "train/train-00000-of-00001.mindrecord"
SECONDS = 300  # in which a run with a damaged shard has ended, on a busy machine; ranks that hang are given 1800


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def flipped(path):
    """Every byte from the middle on to its end, where most of the images are."""
    content = path.read_bytes()
    half = len(content) // 2
    with path.open("r+b") as file:
        file.seek(half)
        file.write(bytes(byte ^ 0xFF for byte in content[half:]))


def one_bit(path):
    with path.open("r+b") as file:
        file.seek(-5000, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-5000, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def decayed(path):
    """As `flipped`, on a disk that forgets: size and mtime stay."""
    status = path.stat()
    flipped(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def gone(path):
    path.unlink()


def copied(records, folder):
    """The records and the validation that they were made from, with their mtimes."""
    shutil.copytree(records.parent / "valid", folder / "valid")
    shutil.copytree(records, folder / "records")
    return folder / "records"


def mended(records, **options):
    write_records(records.parent / "valid", records, **options)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("damage", [truncated, flipped, one_bit, gone])
def test_nothing_is_started_on_a_damaged_shard(tiny, records, tmp_path, damage, ranks):
    mine = copied(records, tmp_path)
    damage(mine / SHARD)
    job = with_(tiny, data={"records": str(mine)}, device={"ranks": ranks}, pretrain={"batch_size": 16 // ranks})
    with pytest.raises(InputError) as error:
        train(job, workspace=tmp_path)
    assert str(mine / SHARD) in str(error.value)
    assert "run `mae data shard` again" in str(error.value)
    assert not list(tmp_path.glob("runs/*/logs"))


def test_a_mended_shard_goes_on(tiny, trained, records, tmp_path):
    """Behind the third epoch, with the shard cut in between."""
    mine = copied(records, tmp_path)
    job = with_(tiny, data={"records": str(mine)})
    run_dir = Run.of(job, tmp_path).directory
    shutil.copytree(trained.run_dir, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "48")
    truncated(mine / SHARD)
    with pytest.raises(InputError, match="run `mae data shard` again"):
        train(job, workspace=tmp_path, resume=True)
    mended(mine)
    again = train(job, workspace=tmp_path, resume=True)
    assert (lines(again.run_dir), again.digest) == (lines(trained.run_dir), trained.digest)


def damaged_later(path, run_dir, damage):
    """Damage the shard once a whole checkpoint is there."""

    def watch():
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not steps(run_dir):
            time.sleep(0.005)
        damage(path)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "ranks", "mending"),
    [(truncated, 2, {}), (decayed, 1, {"full": True})],
)
def test_a_shard_that_is_damaged_under_training(tiny, records, tmp_path, damage, ranks, mending):
    mine = copied(records, tmp_path)
    recipe = {"epochs": 30, "batch_size": 16 // ranks, "keep_checkpoints": 40}
    job = with_(tiny, data={"records": str(mine)}, device={"ranks": ranks}, pretrain=recipe)
    run_dir = Run.of(job, tmp_path).directory
    damager, began = damaged_later(mine / SHARD, run_dir, damage), time.monotonic()
    with pytest.raises(InputError) as error:
        train(job, workspace=tmp_path)
    damager.join()
    assert time.monotonic() - began < SECONDS
    assert str(mine / SHARD) in str(error.value)
    assert ("--full" in str(error.value)) == bool(mending)
    assert not (run_dir / "launch").exists(), "ranks are left"
    left = sorted(steps(run_dir))
    mended(mine, **mending)
    run = train(job, workspace=tmp_path, resume=True)
    assert left[0] == 12
    assert f"from {run_dir / 'checkpoints' / str(left[-1])}" in (run_dir / "logs" / "rank_0.log").read_text()
    whole = train(job, workspace=tmp_path / "whole")
    assert (lines(run.run_dir), run.digest) == (lines(whole.run_dir), whole.digest)
