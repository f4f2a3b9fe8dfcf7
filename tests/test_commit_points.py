"""The enumeration of commit points finds what a crash can leave behind."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from datasets.base.files import atomic_directory, atomic_write
from tests.commit_points import kill_at_commit_points


def rewrite(path: Path, content: str) -> None:
    """As no stage should: in place."""
    path.write_text(content)


def rename_before_sync(path: Path, content: str) -> None:
    """As no stage should: the name is there before the content."""
    partial = path.with_name("partial")
    partial.write_text(content)
    partial.rename(path)
    with open(path, "r+") as file:
        os.fsync(file)


def fill(directory: Path) -> None:
    with atomic_directory(directory) as place:
        for number in range(3):
            (place / str(number)).write_text("new")


@pytest.mark.parametrize(
    ("write", "points", "states"),
    [
        (atomic_write, 4, {"old content", "new content"}),  # opened, written by half, written, renamed
        (rewrite, 1, {"old content", "new content"}),
        (rename_before_sync, 5, {"old content", "new content", "new c"}),
    ],
    ids=["atomic", "in_place", "renamed_too_early"],
)
def test_states_of_a_file(tmp_path, write, points, states):
    path, seen = tmp_path / "file", []
    found = kill_at_commit_points(
        partial(write, path, "new content"),
        lambda _: seen.append(path.read_text()),
        reset=lambda: path.write_text("old content"),
    )
    assert (found, set(seen)) == (points, states)
    assert len(seen) == points + 1
    assert seen[-1] == "new content"


def test_states_of_a_directory(tmp_path):
    """Old, new or for a moment missing, never a part."""
    final, seen = tmp_path / "final", []

    def reset():
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        (final / "file").write_text("old")

    def check(_):
        seen.append(tuple(sorted(path.name for path in final.iterdir())) if final.exists() else None)

    assert kill_at_commit_points(partial(fill, final), check, reset=reset) > 10
    assert set(seen) == {("file",), None, ("0", "1", "2")}


def fail() -> None:
    raise ValueError("no such thing")


def test_an_error_is_passed_on():
    with pytest.raises(AssertionError, match="no such thing"):
        kill_at_commit_points(fail, lambda _: None, reset=lambda: None)
