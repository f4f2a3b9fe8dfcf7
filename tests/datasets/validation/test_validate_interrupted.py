"""Validation that is killed, runs out of disk, or comes again: real processes, real files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from datasets.base.errors import InputError
from datasets.validation.validate import validate
from tests.datasets.conftest import encode, picture

FILES, CLASSES = 2000, 20


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """2,000 different files in 20 classes, every fiftieth of them odd or broken."""
    root = tmp_path_factory.mktemp("many") / "images"
    photo = encode(picture(5, (200, 150)), "JPEG", quality=95)
    odd = encode(picture(6).convert("RGBA"), "PNG")
    for number in range(FILES):
        folder = root / ("val" if number % 10 == 0 else "train") / f"class{number // 10 % CLASSES:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        comment = b"\xff\xfe\0\x0a%08d" % number
        data = odd + b"%08d" % number if number % 50 == 7 else photo[:2] + comment + photo[2:]
        (folder / f"{number}.jpg").write_bytes(data[:-500] if number % 50 == 33 else data)
    return root


def command(root, out):
    return [sys.executable, "-m", "mae", "data", "validate", str(root), "--out", str(out)]


def test_killed_at_any_moment_it_goes_on(tmp_path, many):
    """SIGKILL 20 times after random times, to the command and once in two also to its processes, then undisturbed."""
    whole = tmp_path / "whole"
    started = time.monotonic()
    subprocess.run(command(many, whole), check=True, capture_output=True, timeout=120)
    seconds, chance = time.monotonic() - started, random.Random(0)
    out = tmp_path / "killed" / "out"
    killed = 0
    for turn in range(20):
        process = subprocess.Popen(
            command(many, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            killed += 1
        os.killpg(process.pid, signal.SIGKILL) if turn % 2 and process.poll() is None else process.kill()
        process.wait()
        if turn % 5 == 4:  # else the later turns would only meet a finished validation
            shutil.rmtree(out, ignore_errors=True)
    assert killed >= 10
    subprocess.run(command(many, out), check=True, capture_output=True, timeout=120)
    assert (out / "manifest.parquet").read_bytes() == (whole / "manifest.parquet").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_killed_run_is_not_repeated(tmp_path, many):
    out = tmp_path / "out"
    process = subprocess.Popen(command(many, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out.partial-*/parts/*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < validate(many, out).examined < FILES


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


def test_a_process_that_is_killed_is_an_error_and_the_next_run_goes_on(tmp_path, many):
    """By the kernel, for want of memory, say."""
    out = tmp_path / "out"
    process = subprocess.Popen(command(many, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
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
@pytest.mark.parametrize("size", ["16k", "128k", "256k"])
def test_a_full_disk(tmp_path, many, size):
    with small_disk(tmp_path / "disk", size) as disk:
        with pytest.raises(InputError, match="room for the validation, found No space left on device; free some"):
            validate(many, disk / "out")
        assert not (disk / "out").exists()
        assert not [path for path in disk.rglob("*") if path.is_file() and ".partial-" in path.name]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        result = validate(many, disk / "out")
        assert validate(many, tmp_path / "whole").manifest_digest == result.manifest_digest
