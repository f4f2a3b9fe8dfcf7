"""The rules every stage obeys: atomic output, content digests, errors that say what to do.

Lowest module of the project: it imports nothing of it.
"""

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
    """What a stage returns: names, counts and digests of what it wrote, nothing large.

    `reused` is true where a finished output with the same input digest was verified and kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reused: bool = False


@contextmanager
def atomic_directory(final: PathLike) -> Iterator[Path]:
    """Yield `<final>.partial-<host>-<pid>-<id>`; on success fsync its files and rename it to `final`.

    A failure removes the partial directory; what a SIGKILL leaves behind is removed by the next
    writer of the same `final` on that host. An existing `final` is replaced: its reader has judged it unfit.
    Files are made readable for other users' workers (MindRecord creates them with mode 0600).
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
        if final.exists():
            discard(final)
        partial.rename(final)
        fsync(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def discard(directory: Path) -> None:
    """Remove a directory so that no reader sees a part of it, whenever this process is killed."""
    aside = _partial_of(directory)
    directory.rename(aside)
    shutil.rmtree(aside)


def remove_leftovers(folder: Path, name: Optional[str] = None) -> None:
    """Remove what killed writers of this host left behind of `folder`/`name`, or of all that is in `folder`."""
    pattern = "*" if name is None else glob.escape(name)
    for stale in folder.glob(f"{pattern}.partial-{os.uname().nodename}-*"):
        if not Path("/proc", stale.name.rsplit("-", 2)[1]).exists():  # its writer is gone
            shutil.rmtree(stale, ignore_errors=True)


def _partial_of(final: Path) -> Path:
    return final.with_name(f"{final.name}.partial-{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def refuse_foreign(directory: PathLike, marker: str) -> None:
    """Raise InputError where writing `directory` would replace something that its stage did not write.

    `marker` is the file that the stage always leaves in its output; an empty directory may be replaced.
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
    """Write one file so that a reader sees the old content or the new, never a part."""
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
    """Write `value` as indented JSON, atomically."""
    atomic_write(path, json.dumps(value, indent=2) + "\n")


def fsync(path: Path) -> None:
    """Have a file or directory on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
