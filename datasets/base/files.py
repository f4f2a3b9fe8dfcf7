"""Files and directories that a reader sees whole or not at all, also if the writer is killed."""

from __future__ import annotations

import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union

from pydantic import BaseModel, ConfigDict

from datasets.base.errors import InputError

PathLike = Union[str, Path]


class StageResult(BaseModel):
    """Base of the models that stages return: names, counts and digests of what a stage wrote, nothing large.

    `reused` is true if an earlier call had finished the same output and this call has verified and kept it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reused: bool = False


@contextmanager
def atomic_directory(final: PathLike) -> Iterator[Path]:
    """Yield a new directory `<final>.partial-<host>-<pid>-<id>`; on success fsync its files and rename it to `final`.

    An existing `final` is replaced. If the body raises, the partial directory is removed. If the process is killed, the
    next writer of the same `final` on the same host removes it. All files get mode 0644, so that workers of other users
    can read them.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final.parent, final.name)
    partial = _partial_of(final)
    partial.mkdir()
    try:
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(0o644)
                fsync(path)
        replace_directory(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replace_directory(new: Path, final: Path) -> None:
    """Rename `new` to `final`, remove what was there before, and fsync the folder that holds both."""
    if final.exists():
        discard(final)
    new.rename(final)
    fsync(final.parent)


def discard(directory: Path) -> None:
    """Remove a directory. It is renamed first, so no reader sees a part of it, also if this process is killed."""
    aside = _partial_of(directory)
    directory.rename(aside)
    shutil.rmtree(aside)


def remove_leftovers(folder: Path, name: Optional[str] = None) -> None:
    """Remove the partial directories that killed writers of this host left of `folder / name`.

    Without `name`, remove those of every directory in `folder`.
    """
    pattern = "*" if name is None else glob.escape(name)
    for stale in folder.glob(f"{pattern}.partial-{os.uname().nodename}-*"):
        if not Path("/proc", stale.name.rsplit("-", 2)[1]).exists():  # its writer is gone
            shutil.rmtree(stale, ignore_errors=True)


def _partial_of(final: Path) -> Path:
    return final.with_name(f"{final.name}.partial-{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def refuse_foreign(directory: PathLike, marker: str) -> None:
    """Raise InputError if `directory` holds files of somebody else, which the stage's output would replace.

    `marker` is a file that every output of the stage contains. A directory without it must be empty or missing.
    """
    directory = Path(directory)
    if not directory.exists() or (directory / marker).is_file():
        return
    if directory.is_dir() and not any(directory.iterdir()):
        return
    raise InputError(
        directory,
        expected=f"a new or empty directory, or one that holds {marker}",
        found="other files, which would be lost",
        todo="choose another output directory, or remove this one",
    )


def atomic_write(path: PathLike, content: Union[str, bytes]) -> None:
    """Write a file and its parent folders; a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        fsync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: PathLike, value: Any) -> None:
    """Write a value as indented JSON with `atomic_write`."""
    atomic_write(path, json.dumps(value, indent=2) + "\n")


def fsync(path: Path) -> None:
    """Wait until the disk holds a file's content, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
