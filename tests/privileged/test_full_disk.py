"""Disks that are really full: small file systems in memory, which only root may mount."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datasets import imagenet
from datasets.unpacking import unpack_archives
from tests.datasets.tars import images, pack, train_tar, train_tree, tree, val_names, written

pytestmark = pytest.mark.privileged
ROOT = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path):
    """disk(options) -> an empty file system of its own."""
    mounted = []

    def mount(options):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "mae", "data", "unpack", *map(str, arguments)]
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120)


def small_files(count):
    """Files of a byte each, of which each takes 4 KB of a disk: room that the headers do not announce."""
    return pack({f"{cls}/{number}.jpg": b"x" for cls in ("cat", "dog", "eel") for number in range(count)})


CASES = {  # the file system, the archive, its files, what the error says was found
    "no_blocks": ("size=1m", small_files(400), 1200, "found No space left on device"),
    "no_blocks_among_tars": (
        "size=1m",
        pack({f"{name}.tar": small_files(100) for name in ("cat", "dog", "eel")}),
        900,
        "found No space left on device",
    ),
    "no_inodes": ("size=64m,nr_inodes=200", small_files(400), 1200, "found No space left on device"),
    "known_before": ("size=256k", pack({"cat/a.jpg": bytes(400_000)}), 1, "GB of images, found 0.000 GB free"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_leaves_nothing(tmp_path, disk, case):
    options, data, count, message = CASES[case]
    out = disk(options) / "out"
    tar = written(tmp_path / "a.tar", data)
    found = run(tar, "--out", out)
    assert found.returncode == 1
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert tree(out.parent) == {}
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10000", out.parent], check=True)
    assert run(tar, "--out", out).returncode == 0
    assert len(images(out)) == count


def test_a_disk_that_others_fill(tmp_path, disk):
    """What is there before stays, also where the second archive is the one that does not fit."""
    place = disk("size=4m")
    train = written(tmp_path / imagenet.TRAIN_TAR, train_tar())
    unpack_archives([train], place, check_md5=False)
    before = tree(place)
    val = written(tmp_path / imagenet.VAL_TAR, pack(dict.fromkeys(val_names(2000), b"x")))
    found = run(val, "--out", place, "--skip-md5")
    assert found.returncode == 1
    assert "No space left on device" in found.stderr
    assert tree(place) == before
    assert images(place) == train_tree()
