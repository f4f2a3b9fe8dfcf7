"""Shards that are kept and shards that are written again: after SIGKILL, damage, changed images, a full disk."""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.base.errors import InputError
from datasets.sharding import check_records, write_records
from datasets.validation.validate import validate

ROOT = Path(__file__).resolve().parents[3]
SEED = 20261123
KILLS = 20
KILLS_IN_A_ROW = 4


def noise(generator, side=100) -> bytes:
    """A PNG of about 3 * side^2 bytes that no other call gives."""
    out = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, "PNG", compress_level=0)
    return out.getvalue()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """images/ of 2,000 files of 30 kB in 4 classes, their validation, and records of 56 + 6 shards, left alone."""
    base = tmp_path_factory.mktemp("resume")
    generator = np.random.default_rng(SEED)
    for number in range(2000):
        path = base / "images" / ("val" if number % 10 == 9 else "train") / "abcd"[number % 4] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(generator))
    validate(base / "images", base / "validation")
    write_records(base / "validation", base / "records", shard_mb=1)
    return base


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the one that tells when the others were written."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "stamps.json"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def inodes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in directory.rglob("*.mindrecord")}


def command(base: Path, out: Path, **options: object) -> subprocess.Popen:
    arguments = ["-m", "mae", "data", "shard", str(base / "validation"), "--out", str(out), "--shard-mb", "1"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, start_new_session=True, **streams, **options)


def finish(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def test_sigkill_at_random_moments(base, tmp_path):
    """20 kills in five rounds; each round's last call ends what the killed ones began."""
    moments = random.Random(SEED)
    out = tmp_path / "undisturbed"
    started = time.monotonic()
    finish(command(base, out))
    duration = time.monotonic() - started
    expected = contents(base / "records")
    assert contents(out) == expected
    kept = 0
    for kill in range(KILLS):
        out = tmp_path / f"out{kill // KILLS_IN_A_ROW}"
        before = finished(out)
        process = command(base, out)
        wait_for_a_moment(moments, process, out, duration)
        if kill % 2:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()  # the worker processes end by themselves
        process.communicate()
        assert not out.exists() or expected.items() <= contents(out).items(), "half an output"
        assert before.items() <= (finished(out) or inodes(out)).items(), "a finished shard was written again"
        kept += len(before)
        if kill % KILLS_IN_A_ROW == KILLS_IN_A_ROW - 1:
            before = finished(out)
            finish(command(base, out))
            assert contents(out) == expected
            assert before.items() <= inodes(out).items()
            check_records(out, root=base / "images")
    assert kept > KILLS, "the moments were too early to show anything"
    assert {path.name for path in tmp_path.iterdir()} == {"undisturbed", *(f"out{n}" for n in range(5))}


def wait_for_a_moment(moments: random.Random, process: subprocess.Popen, out: Path, duration: float) -> None:
    """A moment of the whole call, or, as often, of the short time in which shards are written."""
    deadline = time.monotonic() + moments.uniform(0.1, 0.9) * duration
    if moments.random() < 0.5:
        deadline += 60
    shards, delay = len(finished(out)) + moments.randint(1, 12), moments.uniform(0, 0.05)
    while process.poll() is None and time.monotonic() < deadline:
        if len(finished(out)) >= shards:
            time.sleep(delay)
            return
        time.sleep(0.005)


def finished(out: Path) -> dict[str, int]:
    """Inode of each finished shard that killed calls have left."""
    found = {}
    for entry in out.parent.glob(f"{out.name}.partial-*/entries/*.json"):
        file = entry.parents[1] / entry.name.split("-")[0] / entry.name.removesuffix(".json")
        with suppress(FileNotFoundError):  # the whole has just got its final name
            found[file.name] = file.stat().st_ino
    return found


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _flip_unseen(path: Path) -> None:
    """Change a byte and let size and mtime be those of before: what a failing disk does."""
    before = path.stat()
    _flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


DAMAGE = {  # name: (what happens to which file, whether it takes --full to see, what the log says)
    "byte_flipped": (_flip, "", False, "mindrecord: other content"),
    "byte_flipped_unseen": (_flip_unseen, "", True, "mindrecord: other content"),
    "truncated": (_truncate, "", False, "mindrecord: other content"),
    "removed": (Path.unlink, "", False, "mindrecord: no such file"),
    "database_flipped": (_flip, ".db", False, "mindrecord.db: other content"),
    "database_removed": (Path.unlink, ".db", False, "mindrecord.db: no such file"),
    "sources_flipped": (_flip, ".sources.parquet", False, "sources.parquet: other content"),
    "sources_removed": (Path.unlink, ".sources.parquet", False, "sources.parquet: no such file"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_shard_is_written_again_alone(base, tmp_path, caplog, case):
    damage, suffix, needs_full, message = DAMAGE[case]
    out = Path(shutil.copytree(base / "records", tmp_path / "out"))
    before = inodes(out)
    victim = sorted((out / "train").glob("*.mindrecord"))[7]
    damage(victim.with_name(victim.name + suffix))
    if needs_full:
        assert write_records(base / "validation", out, shard_mb=1).reused
    assert not write_records(base / "validation", out, shard_mb=1, full=needs_full).reused
    assert message in caplog.text
    assert contents(out) == contents(base / "records")
    after = inodes(out)
    assert {name for name in after if after[name] != before[name]} == {victim.name}
    assert write_records(base / "validation", out, shard_mb=1, full=True).reused


@pytest.mark.parametrize("file", ["manifest.parquet", "index.json"])
def test_damaged_index_and_manifest(base, tmp_path, file):
    out = Path(shutil.copytree(base / "records", tmp_path / "out"))
    before = inodes(out)
    (out / file).write_bytes(b"{}")
    assert not write_records(base / "validation", out, shard_mb=1).reused
    assert contents(out) == contents(base / "records")
    assert (inodes(out) == before) == (file == "manifest.parquet")  # without an index, nothing is known of the shards


def test_copied_records_are_read_once_and_kept(base, tmp_path):
    """A copy has other mtimes: its digests are what counts."""
    out = tmp_path / "out"
    subprocess.run(["cp", "-r", base / "records", out], check=True)
    before = inodes(out)
    assert write_records(base / "validation", out, shard_mb=1).reused
    assert inodes(out) == before


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same_output", "output_beside"])
def test_changed_files_cost_the_shards_that_hold_them(base, tmp_path, elsewhere):
    """5 of 2,000 files change, one comes and one goes: at most 7 of 60 shards are written."""
    images = Path(shutil.copytree(base / "images", tmp_path / "images"))
    subprocess.run(["cp", "-r", "--preserve=timestamps", base / "records", tmp_path / "out"], check=True)
    before = inodes(tmp_path / "out")
    generator = np.random.default_rng(1)
    files = sorted((images / "train").rglob("*.png"))
    changed = [files[n] for n in range(0, 1500, 300)]
    for path in changed:
        path.write_bytes(noise(generator))
    files[77].unlink()
    (images / "train/a/new.png").write_bytes(noise(generator))
    validate(images, tmp_path / "validation")
    out = tmp_path / "out" if not elsewhere else tmp_path / "out-of-another-digest"
    write_records(tmp_path / "validation", out, shard_mb=1)
    after = inodes(out)
    assert after.keys() == before.keys()
    assert 1 <= sum(after[name] != before[name] for name in after) <= 7
    assert check_records(out, root=images) == write_records(tmp_path / "validation", out, shard_mb=1)
    fresh = write_records(tmp_path / "validation", tmp_path / "elsewhere" / "fresh", shard_mb=1)
    assert contents(fresh.directory) == contents(out)


def test_shards_of_a_failed_call_serve_after_another_validation(base, tmp_path):
    """A source that changed fails the call; what it had finished is kept for the call after the next validation."""
    images = Path(shutil.copytree(base / "images", tmp_path / "images"))
    validate(images, tmp_path / "validation")
    victim = images / "val/d/999.png" if (images / "val/d/999.png").exists() else next((images / "val").rglob("*.png"))
    victim.write_bytes(noise(np.random.default_rng(2)))
    with pytest.raises(InputError, match=f"{victim.name}: expected the validated file"):
        write_records(tmp_path / "validation", tmp_path / "data-000000000000", shard_mb=1)
    assert not list(tmp_path.glob("data-*/attempts/*"))
    done = finished(tmp_path / "data-000000000000")
    assert len(done) > 40
    validate(images, tmp_path / "validation", name="data")
    write_records(tmp_path / "validation", tmp_path / "data-111111111111", shard_mb=1)
    assert done.items() <= inodes(tmp_path / "data-111111111111").items()
    assert not list(tmp_path.glob("data-*.partial-*")), "nobody would ever have removed them"


def test_two_calls_at_once(base, tmp_path):
    """The second waits for the first, and finds its output."""
    with ThreadPoolExecutor(2) as pool:
        processes = [command(base, tmp_path / "out") for _ in range(2)]
        logs = list(pool.map(finish, processes))
    assert contents(tmp_path / "out") == contents(base / "records")
    assert sorted("reusing the records" in log for log in logs) == [False, True]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))


def test_files_that_may_not_grow(base, tmp_path):
    """The unprivileged stand-in for a full disk: no file of the process may exceed 500 kB, and shards have a MB."""
    process = command(base, tmp_path / "out", preexec_fn=_limit_file_size)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "expected room for the shards, found File too large" in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.privileged
@pytest.mark.parametrize("megabytes", [2, 30])
def test_full_disk(base, tmp_path, megabytes):
    """On a tmpfs that is too small from the start, and on one that others fill while shards are written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", disk], check=True)
    try:
        process = command(base, disk / "out")
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "expected room for the shards, found no space left" in errors
        assert not (disk / "out").exists()
        assert not list(disk.glob("out.partial-*/attempts/*"))
    finally:
        subprocess.run(["umount", disk], check=True)
