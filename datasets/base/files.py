"""The rules every stage obeys: atomic output, content digests, errors that say what to do.

Lowest module of the project: it imports nothing of it.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union

import xxhash
from pydantic import BaseModel, ConfigDict

PathLike = Union[str, Path]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """The input or the run is at fault, and repeating the same call cannot help (exit code 1).

    Args:
        where: file, key or machine in which the fault was found.
        expected: what would have been right.
        found: what was there instead.
        todo: what the user does next.
    """

    def __init__(self, where: object, *, expected: str, found: str, todo: str) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}; {todo}")

    @classmethod
    def from_message(cls, message: str) -> InputError:
        """The same error again, from its text: how it crosses from one process to another."""
        return cls.__new__(cls, message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_message, (str(self),)


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


@contextmanager
def room_for(what: str, directory: PathLike) -> Iterator[None]:
    """Make an InputError of a full disk, an exhausted quota and a limit on the size of files."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise no_room(what, directory, str(error.strerror)) from None


def no_room(what: str, directory: PathLike, found: str) -> InputError:
    """What is raised where a disk cannot take what should be written to `directory`."""
    todo = "free some, or choose another disk, and run it again"
    return InputError(directory, expected=f"room for {what}", found=found, todo=todo)


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


def file_digest(path: PathLike) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def checksum(data: bytes) -> bytes:
    """XXH3-128 of bytes: finds any damage at the speed of memory, where SHA-256 costs as much as all else; no proof
    against a forger."""
    return xxhash.xxh3_128_digest(data)


def file_checksum(path: PathLike) -> str:
    """XXH3-128 of a file's bytes, as "xxh3:" and hex (`xxhsum -H2` prints the same)."""
    found = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return f"xxh3:{found.hexdigest()}"


def value_digest(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of a JSON value with sorted keys: names a directory by its inputs."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def fsync(path: Path) -> None:
    """Have a file or directory on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
