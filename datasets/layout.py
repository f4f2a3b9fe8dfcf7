"""Which files make a data set: folders to (split, class, file), before any file is opened.

`class_folders` looks at the top folders only; `list_files` lists one of them, in the process that will read its files.

Three layouts are known:

    root/train/<class>/**, root/val/<class>/**    ImageNet style; without val/ a share of train/ is held out
    root/<class>/**                               class folders; a share of each class is held out for validation
    root/*                                        a flat folder: the one class "unlabelled"; a share is held out
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from datasets.base.errors import InputError
from datasets.base.files import PathLike

MARKERS = {"sample": "sample.json", "unpack": "unpack.json"}  # written by our own commands next to train/ and val/
UNLABELLED = "unlabelled"
NO_CLASS = ""  # the class of a file next to the class folders, and of a hidden file


class ClassFolder(NamedTuple):
    """A folder whose files are of one split and class, before a share of it may be held out."""

    split: str  # train | val
    class_name: str  # NO_CLASS for files that cannot be samples
    path: str  # relative to the root; "" is the root itself
    loose: bool  # True: only the files directly in this folder; False: all files below it


def class_folders(root: PathLike) -> tuple[list[ClassFolder], bool]:
    """Return the folders of a data set in the manifest's order, and whether a share of train is held out as val.

    Raises:
        InputError: the root is missing, a folder is not readable, or a class name is not UTF-8.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise InputError(root, expected="a folder of images", found=found, todo="correct the data root")
    splits = _split_folders(root)
    folders = [folder for split in splits or ["train"] for folder in _of_split(root, split if splits else "", split)]
    return sorted(folders), splits != ["train", "val"]


def list_files(root: PathLike, folder: ClassFolder) -> list[str]:
    """Return every file of a folder, relative to the root, in no order. Linked files and folders are followed.

    Raises:
        InputError: a folder in it is not readable.
    """
    root = os.path.abspath(root)
    start = len(os.path.join(root, ""))
    top = os.path.join(root, folder.path) if folder.path else root
    return [path[start:] for path in (_loose(top, folder.class_name) if folder.loose else _walk(top))]


def hold_out(paths: Iterable[str], share: float) -> bytes | None:
    """Return the limit that `is_held_out` compares with, for the files of one class; none if nothing is held out.

    The files whose relative paths have the smallest SHA-256 are held out, so the choice depends on the paths alone. A
    class of two or more files keeps at least one in each split. Hidden files are not counted.
    """
    digests = [_path_digest(path) for path in paths if not is_hidden(path)]
    count = min(max(1, round(share * len(digests))), len(digests) - 1)
    return heapq.nsmallest(count, digests)[-1] if count > 0 else None


def is_held_out(path: str, limit: bytes | None) -> bool:
    """Return whether a file belongs to the held-out share of its class."""
    return limit is not None and not is_hidden(path) and _path_digest(path) <= limit


def outside(root: PathLike) -> list[str]:
    """Return the names in the root that do not belong to the data set in its train/ and val/, sorted."""
    splits = _split_folders(Path(root))
    return sorted(set(os.listdir(root)) - {*splits, *MARKERS.values()}) if splits else []


def is_hidden(path: str) -> bool:
    """Return whether a part of the relative path is hidden, or is the folder that macOS adds to archives."""
    if "." not in path[:1] and "/." not in path and "__MACOSX" not in path:
        return False
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _path_digest(path: str) -> bytes:
    return hashlib.sha256(os.fsencode(path)).digest()


def _split_folders(root: Path) -> list[str]:
    """Return the folders that are splits: train and val, train, or none. Next to other folders, train/ is a class."""
    folders = {entry.name for entry in _entries(str(root)) if entry.is_dir() and not is_hidden(entry.name)}
    if {"train", "val"} <= folders:
        return ["train", "val"]
    return ["train"] if "train" in folders and folders <= {"train", "test"} else []


def _of_split(root: Path, path: str, split: str) -> Iterator[ClassFolder]:
    """Yield the class folders of one split. Without class folders, all its files belong to one class."""
    entries = _entries(str(root / path))
    classes = [entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            where = ascii(str(root / path / name))
            raise InputError(
                where, expected="a class name in UTF-8", found="other bytes", todo="rename the folder"
            ) from None
        yield ClassFolder(split, name, os.path.join(path, name), loose=False)
    if not classes:
        yield ClassFolder(split, UNLABELLED, path, loose=True)
    yield ClassFolder(split, NO_CLASS, path, loose=True)


def _loose(top: str, class_name: str) -> Iterator[str]:
    entries = _entries(top)
    flat = not any(entry.is_dir() and not is_hidden(entry.name) for entry in entries)
    for entry in entries:
        hidden = is_hidden(entry.name)
        if entry.is_dir():
            if hidden and class_name == NO_CLASS:
                yield from _walk(entry.path)
        elif (flat and not hidden) == (class_name == UNLABELLED):
            yield entry.path


def _walk(folder: str) -> Iterator[str]:
    """Yield every file below a folder. Links are followed, except those that lead back to a folder above them."""
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        here = os.path.join(os.path.realpath(parent), "")
        folders[:] = [
            name
            for name in folders
            if not here.startswith(os.path.join(os.path.realpath(os.path.join(parent, name)), ""))
        ]
        for name in names:
            yield os.path.join(parent, name)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        return _unreadable(error)


def _unreadable(error: OSError) -> NoReturn:
    raise InputError(
        error.filename, expected="a readable folder", found=str(error.strerror), todo="correct its permissions"
    ) from None
