"""Validation that is killed, that runs out of disk, or that runs again after changes: real processes, real files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from datasets.base.errors import InputError
from datasets.validation.validate import load_validation, validate
from tests.commit_points import kill_at_commit_points
from tests.datasets.conftest import encode, picture

FILES, CLASSES = 1000, 20


def write_images(root, files, classes, odd=b"text"):
    """Different files in folders of train and val; every fiftieth is `odd`."""
    photo = encode(picture(5, (200, 150)), "JPEG", quality=95)
    for number in range(files):
        folder = root / ("val" if number % 10 == 0 else "train") / f"class{number // 10 % classes:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        comment = b"\xff\xfe\0\x0a%08d" % number
        data = odd + b"%08d" % number if number % 50 == 7 else photo[:2] + comment + photo[2:]
        (folder / f"{number}.jpg").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return write_images(
        tmp_path_factory.mktemp("many") / "images", FILES, CLASSES, encode(picture(6).convert("RGBA"), "PNG")
    )


def contents(directory):
    """Every file of a validation but its tables, which contain the inodes of the images."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_killed_at_any_point_it_continues(tmp_path):
    """The files that were examined before the kill are not examined again."""
    root, out, examined = write_images(tmp_path / "images", 20, 1), tmp_path / "place" / "out", []
    validate(root, tmp_path / "whole", workers=1)

    def reset():
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()

    def check(_):
        examined.append(validate(root, out, workers=1).examined)
        assert contents(out) == contents(tmp_path / "whole")
        assert os.listdir(out.parent) == ["out"]

    assert kill_at_commit_points(partial(validate, root, out, workers=1), check, reset=reset) > 10
    assert examined == sorted(examined, reverse=True)
    assert set(examined) == {20, 0}  # before the table was written, and after


def test_killed_at_any_point_an_update_loses_nothing(tmp_path):
    root, out, first = write_images(tmp_path / "images", 20, 1), tmp_path / "place" / "out", tmp_path / "first"
    validate(root, first, workers=1)
    (root / "train/class00/new.jpg").write_bytes((root / "train/class00/1.jpg").read_bytes())
    whole = validate(root, tmp_path / "whole", workers=1)

    def reset():
        shutil.rmtree(out.parent, ignore_errors=True)
        shutil.copytree(first, out)

    def check(_):
        if out.exists():
            load_validation(out)
        again = validate(root, out, workers=1)
        assert again.examined <= 1
        assert again.manifest_digest == whole.manifest_digest
        assert contents(out) == contents(tmp_path / "whole")
        assert os.listdir(out.parent) == ["out"]

    assert kill_at_commit_points(partial(validate, root, out, workers=1), check, reset=reset) > 10


def test_100_changed_files_cost_100_examinations(tmp_path, many):
    root, out = Path(shutil.copytree(many, tmp_path / "images")), tmp_path / "out"
    assert validate(root, out).examined == FILES
    again = validate(root, out)
    assert (again.examined, again.reused) == (0, True)
    changed = random.Random(0).sample(sorted(root.rglob("*.jpg")), 100)
    for path in changed:
        path.write_bytes(path.read_bytes() + b"more")
    again = validate(root, out)
    assert (again.examined, again.reused) == (100, False)
    assert validate(root, tmp_path / "undisturbed").manifest_digest == again.manifest_digest


def test_a_killed_worker_is_an_error_and_the_next_run_continues(tmp_path, many):
    """As the kernel kills it when memory runs out."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mae", "data", "validate", str(many), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not list(tmp_path.glob("out.partial-*/parts/*.parquet")) and process.poll() is None:
        time.sleep(0.01)
    for pid in children.read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    assert process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert not out.exists()
    assert validate(many, out).examined < FILES


@contextmanager
def small_disk(place, size):
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.privileged
@pytest.mark.parametrize("size", ["16k", "128k", "176k"])
def test_a_full_disk(tmp_path, many, size):
    with small_disk(tmp_path / "disk", size) as disk:
        with pytest.raises(InputError, match="room for the validation, found No space left on device; free some"):
            validate(many, disk / "out")
        assert not (disk / "out").exists()
        assert not [path for path in disk.rglob("*") if path.is_file() and ".partial-" in path.name]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        result = validate(many, disk / "out")
        assert validate(many, tmp_path / "whole").manifest_digest == result.manifest_digest
