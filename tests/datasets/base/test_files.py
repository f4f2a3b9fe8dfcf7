"""Files and directories are whole or absent, also after a SIGKILL, and nobody's files are replaced."""

from __future__ import annotations

import os
import random
import shutil
from functools import partial

import pytest

from datasets.base.digests import checksum, file_checksum
from datasets.base.errors import InputError
from datasets.base.files import atomic_directory, atomic_write, refuse_foreign
from tests.commit_points import kill_at_commit_points


def write_directory(out, content):
    with atomic_directory(out) as directory:
        for name in ("a", "b"):
            (directory / name).mkdir()
            (directory / name / "file").write_text(content)


def read_directory(out):
    return [(out / name / "file").read_text() for name in ("a", "b")]


@pytest.mark.parametrize("former", [None, "first"])
def test_a_killed_writer_leaves_no_half_directory(tmp_path, former):
    out = tmp_path / "here/out"

    def check(_):
        assert not out.exists() or read_directory(out) in ([former] * 2, ["second"] * 2)
        write_directory(out, "second")
        assert read_directory(out) == ["second"] * 2
        assert os.listdir(out.parent) == ["out"]

    def reset():
        shutil.rmtree(out.parent, ignore_errors=True)
        if former is not None:
            write_directory(out, former)

    assert kill_at_commit_points(partial(write_directory, out, "second"), check, reset=reset) >= 6


def test_a_killed_writer_leaves_the_former_file(tmp_path):
    path = tmp_path / "file"

    def check(_):
        assert path.read_text() in ("first", "second")

    work = partial(atomic_write, path, "second")
    assert kill_at_commit_points(work, check, reset=partial(atomic_write, path, "first")) >= 3


def test_failure_keeps_the_former_output(tmp_path):
    with atomic_directory(tmp_path / "out") as partial:
        (partial / "file").write_text("first")

    def fail() -> None:
        with atomic_directory(tmp_path / "out") as partial:
            (partial / "file").write_text("second")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "out/file").read_text() == "first"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("names", "refused"),
    [(None, False), ([], False), (["marker.json", "x"], False), (["x"], True)],
    ids=["missing", "empty", "ours", "foreign"],
)
def test_refuse_foreign(tmp_path, names, refused):
    if names is not None:
        (tmp_path / "out").mkdir()
        for name in names:
            (tmp_path / "out" / name).touch()
    if refused:
        with pytest.raises(InputError, match=r"or one that holds marker\.json"):
            refuse_foreign(tmp_path / "out", "marker.json")
    else:
        refuse_foreign(tmp_path / "out", "marker.json")


def test_refuse_foreign_file(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(InputError):
        refuse_foreign(tmp_path / "out", "marker.json")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_a_file_has_the_checksum_of_its_bytes(tmp_path, size):
    """The empty input's value is that of the published test vectors."""
    data = random.Random(size).randbytes(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert file_checksum(path) == f"xxh3:{checksum(data).hex()}"
    if not size:
        assert checksum(data).hex() == "99aa06d3014798d86001c324468d497f"
