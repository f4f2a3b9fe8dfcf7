"""Training on a disk that is really full: it says so, keeps what is good, and goes on once there is room."""

import os
import subprocess
import sys

import pytest

from mae.runs import checkpoint
from tests.mae.conftest import images, records, tiny, tiny_yaml, trained
from tests.mae.made_runs import lines, with_
from tests.privileged.test_full_disk import ROOT, disk

__all__ = ["disk", "images", "records", "tiny", "tiny_yaml", "trained"]  # fixtures
pytestmark = pytest.mark.privileged


def run(config, workspace, ranks, *arguments):
    sizes = [f"--set=device.ranks={ranks}", f"--set=pretrain.batch_size={16 // ranks}"]
    call = [sys.executable, "-m", "mae", "train", str(config), "--workspace", str(workspace), *sizes, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def whole(tiny, trained, tmp_path_factory):
    """The undisturbed run by number of ranks."""
    from mae.train import train

    two = with_(tiny, device={"ranks": 2}, pretrain={"batch_size": 8})
    return {1: trained, 2: train(two, workspace=tmp_path_factory.mktemp("two"))}


@pytest.mark.parametrize(
    ("name", "size", "ranks", "good"),  # a checkpoint takes 116 KB, the files beside it 20 to 50
    [
        ("no room for one checkpoint", "100k", 1, {None}),
        ("hardly for the second and metrics", "252k", 1, {12, 24}),
        ("not for the third", "310k", 1, {24}),
        ("not for the second", "220k", 2, {12}),
    ],
)
def test_training_goes_on_once_there_is_room(tiny_yaml, whole, disk, name, size, ranks, good):
    place = disk(f"size={size}")
    full = run(tiny_yaml, place, ranks)
    (run_dir,) = place.glob("runs/*")
    assert full.returncode == 1, name
    assert f"mae: {run_dir}" in full.stderr
    assert "expected room for" in full.stderr
    assert "Traceback" not in full.stderr
    newest = checkpoint.newest(run_dir / "checkpoints")
    assert (int(newest.name) if newest else None) in good
    assert not (run_dir / "launch").exists(), "ranks are left"
    subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
    again = run(tiny_yaml, place, ranks, "--resume")
    assert again.returncode == 0, again.stderr
    assert lines(run_dir) == lines(whole[ranks].run_dir)
    last = run_dir / "checkpoints" / "48"
    assert checkpoint.load_state(last).digests == checkpoint.load_state(whole[ranks].checkpoint.parent).digests
    assert not list(place.rglob("*.partial-*"))
