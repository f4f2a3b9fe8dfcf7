"""Repeated calls of `write_records`: after a SIGKILL, damage, other images, a full disk, and two at once."""

from __future__ import annotations

import io
import os
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.base.errors import InputError
from datasets.sharding import check_records, write_records
from datasets.validation.validate import validate
from tests.commit_points import kill_at_commit_points

ROOT = Path(__file__).resolve().parents[3]


def noise(generator) -> bytes:
    """A PNG of about 480 kB that no other call gives; two of them fill a shard of 1 MB."""
    out = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (400, 400, 3), dtype=np.uint8)).save(out, "PNG", compress_level=0)
    return out.getvalue()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """images/ of 5 files in 2 classes, their validation/, and their records/ of at least 3 shards, never changed."""
    base = tmp_path_factory.mktemp("resume")
    generator = np.random.default_rng(20261123)
    for number in range(5):
        path = base / "images" / ("val" if number == 4 else "train") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(generator))
    validate(base / "images", base / "validation")
    assert write(base / "validation", base / "records").shards >= 3
    return base


def write(validation, out, **options):
    return write_records(validation, out, shard_mb=1, **{"workers": 1, **options})


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the one with the times at which the others were written."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "stamps.json"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def inodes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in directory.rglob("*.mindrecord")}


def finished(out: Path) -> dict[str, int]:
    """Inode of each shard that interrupted calls have finished."""
    entries = {entry.name.removesuffix(".json") for entry in out.parent.glob(f"{out.name}.partial-*/entries/*.json")}
    shards = out.parent.glob(f"{out.name}.partial-*/records/*/*.mindrecord")
    return {path.name: path.stat().st_ino for path in shards if path.name in entries}


def test_killed_at_every_commit_point(base, tmp_path):
    """The output is whole or absent, the next call keeps every finished shard and gives the same bytes."""
    from tests.datasets.sharding import killed_write

    out = tmp_path / "here/out"
    expected = contents(base / "records")
    kept = set()

    def check(_):
        assert not out.exists() or contents(out) == expected, "half an output"
        before = finished(out)
        write(base / "validation", out)
        assert contents(out) == expected
        assert before.items() <= inodes(out).items(), "a finished shard was written again"
        kept.add(len(before))
        assert [path.name for path in out.parent.iterdir()] == ["out"]

    def reset():
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()

    assert kill_at_commit_points(partial(killed_write.write, base / "validation", out), check, reset=reset) > 20
    assert len(kept) >= 3, "calls were killed with no, some and all shards finished"


def test_killed_while_an_output_is_replaced(base, tmp_path):
    """Another seed replaces the former output. At every point there is a whole one of either, or none."""
    from tests.datasets.sharding import killed_write

    out, former = tmp_path / "here/out", tmp_path / "former"
    write(base / "validation", former, seed=1)
    whole = (contents(former), contents(base / "records"))

    def check(_):
        assert not out.exists() or contents(out) in whole
        write(base / "validation", out)
        assert contents(out) == whole[1]
        assert [path.name for path in out.parent.iterdir()] == ["out"]

    def reset():
        shutil.rmtree(out.parent, ignore_errors=True)
        shutil.copytree(former, out)

    kill_at_commit_points(partial(killed_write.write, base / "validation", out), check, reset=reset)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _flip_unseen(path: Path) -> None:
    """Change a byte but neither size nor mtime, as a failing disk does."""
    before = path.stat()
    _flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


DAMAGE = {  # name: (what happens, to which file, whether only --full finds it, what the log says)
    "byte_flipped": (_flip, "train/*.mindrecord", False, "mindrecord: .* found other content"),
    "byte_flipped_unseen": (_flip_unseen, "train/*.mindrecord", True, "mindrecord: .* found other content"),
    "truncated": (_truncate, "train/*.mindrecord", False, "mindrecord: .* found other content"),
    "removed": (Path.unlink, "train/*.mindrecord", False, "mindrecord: .* found no such file"),
    "database_flipped": (_flip, "val/*.db", False, r"mindrecord\.db: .* found other content"),
    "sources_removed": (Path.unlink, "val/*.sources.parquet", False, r"sources\.parquet: .* found no such file"),
    "manifest_flipped": (_flip, "manifest.parquet", False, r"manifest\.parquet: .* found other content"),
    "index_truncated": (_truncate, "index.json", False, "found damaged content"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_output_is_written_again(base, tmp_path, caplog, case):
    damage, pattern, needs_full, message = DAMAGE[case]
    out = Path(shutil.copytree(base / "records", tmp_path / "out"))
    damage(next(iter(sorted(out.glob(pattern)))))
    if case == "index_truncated":
        _truncate(out / "index.json")  # its last byte is a line feed
    if needs_full:
        assert write(base / "validation", out).reused
    with caplog.at_level("WARNING"):
        assert not write(base / "validation", out, full=needs_full).reused
    assert any(re.search(message, line) for line in caplog.messages)
    assert contents(out) == contents(base / "records")


def test_copied_records_are_read_once_and_kept(base, tmp_path):
    """A copy has other mtimes, so its digests are compared."""
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", base / "records", out], check=True)
    before = inodes(out)
    assert write(base / "validation", out).reused
    assert inodes(out) == before


def test_any_number_of_workers_writes_the_same(base, tmp_path):
    write(base / "validation", tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(base / "records")
    check_records(tmp_path / "out", root=base / "images")


def test_shards_of_a_failed_call_are_kept_for_the_next(base, tmp_path):
    """A source that is unreadable for a while fails the call, and the next one writes only the shard that it is in."""
    images = Path(shutil.copytree(base / "images", tmp_path / "images"))
    validate(images, tmp_path / "validation")
    victim = next((images / "val").rglob("*.png"))
    victim.rename(tmp_path / "away")
    with pytest.raises(InputError, match=f"{victim.name}: expected the validated file"):
        write(tmp_path / "validation", tmp_path / "out")
    before = finished(tmp_path / "out")
    assert len(before) >= 2
    (tmp_path / "away").rename(victim)
    write(tmp_path / "validation", tmp_path / "out")
    assert before.items() <= inodes(tmp_path / "out").items()
    assert not list(tmp_path.glob("out.*"))


def command(base: Path, out: Path, **options: object) -> subprocess.Popen:
    arguments = ["-m", "mae", "data", "shard", str(base / "validation"), "--out", str(out), "--shard-mb", "1"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, **streams, **options)


def finish(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def test_two_calls_at_once(base, tmp_path):
    """The second waits for the first, and finds its output."""
    with ThreadPoolExecutor(2) as pool:
        processes = [command(base, tmp_path / "out") for _ in range(2)]
        logs = list(pool.map(finish, processes))
    assert contents(tmp_path / "out") == contents(base / "records")
    assert sorted("reusing the records" in log for log in logs) == [False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))


def test_files_that_may_not_grow(base, tmp_path):
    """In place of a full disk, without privileges: no file may exceed 400 kB, and each shard does."""
    process = command(base, tmp_path / "out", preexec_fn=_limit_file_size)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "expected room for the shards, found File too large" in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.privileged
@pytest.mark.parametrize("kilobytes", [900, 3500])
def test_full_disk(base, tmp_path, kilobytes):
    """On a tmpfs that is too small for the images, and on one that is too small for pages and headers as well."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", disk], check=True)
    try:
        process = command(base, disk / "out")
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "expected room for the shards, found no space left" in errors
        assert not (disk / "out").exists()
        assert not list(disk.glob("out.partial-*/attempts/*-of-*-*"))
    finally:
        subprocess.run(["umount", disk], check=True)
