"""Which files make a data set: folders to (split, class, files), before any file is opened.

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
from typing import NamedTuple, NoReturn

from datasets.base.errors import InputError
from datasets.base.files import PathLike

MARKERS = {"sample": "sample.json", "unpack": "unpack.json"}  # written by our own commands next to train/ and val/
UNLABELLED = "unlabelled"
NO_CLASS = ""  # the class of a file next to the class folders, and of a hidden file


class ClassFiles(NamedTuple):
    """The files of one class in one split."""

    split: str  # train | val
    class_name: str  # NO_CLASS for files that cannot be samples
    paths: list[str]  # relative to the root, as the file system has them, sorted by `display_path`


def list_files(root: PathLike, *, val_share: float, empty_classes: bool = False) -> list[ClassFiles]:
    """Return every file of a data set, in the order of the manifest. Linked files and folders are followed.

    Without val/, the share `val_share` of each class is held out as val. The files whose relative paths have the
    smallest SHA-256 are held out, so the choice depends on the paths alone. A class of two or more files keeps at least
    one in each split. Hidden files are never held out.

    Args:
        root: of the data set.
        val_share: above 0 and below 1.
        empty_classes: whether a class folder may have no files except hidden ones.

    Raises:
        InputError: a folder is missing or not readable, a class has no files, or its name is not UTF-8.
    """
    root = os.path.abspath(root)
    splits = _split_folders(root)
    found = [
        part
        for split in splits or ["train"]
        for files in _of_split(root, split if splits else "", split, empty_classes)
        for part in ([files] if splits == ["train", "val"] else _held_out(files, val_share))
    ]
    return sorted(part for part in found if part.paths)


def display_path(path: str) -> str:
    """Return a path that can be written as UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def outside(root: PathLike) -> list[str]:
    """Return the names in the root that do not belong to the data set in its train/ and val/, sorted."""
    splits = _split_folders(root)
    return sorted(set(os.listdir(root)) - {*splits, *MARKERS.values()}) if splits else []


def is_hidden(path: str) -> bool:
    """Return whether a part of the relative path is hidden, or is the folder that macOS adds to archives."""
    if "." not in path[:1] and "/." not in path and "__MACOSX" not in path:
        return False
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _split_folders(root: PathLike) -> list[str]:
    """Return the folders that are splits: train and val, train, or none. Next to other folders, train/ is a class."""
    folders = {entry.name for entry in _entries(root) if entry.is_dir() and not is_hidden(entry.name)}
    if {"train", "val"} <= folders:
        return ["train", "val"]
    return ["train"] if "train" in folders and folders <= {"train", "test"} else []


def _of_split(root: str, folder: str, split: str, empty_classes: bool) -> Iterator[ClassFiles]:
    """Yield the files of each class folder of a split, and of none. Without class folders, all are of one class."""
    top = os.path.join(root, folder) if folder else root
    entries = _entries(top)
    classes = [entry for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
    for entry in classes:
        if display_path(entry.name) != entry.name:
            expected, todo = "a class name in UTF-8", "rename the folder"
            raise InputError(ascii(entry.path), expected=expected, found="other bytes", todo=todo)
        files = _class_files(root, split, entry.name, _walk(entry.path))
        if not empty_classes and all(map(is_hidden, files.paths)):
            expected, todo = "images of this class", "fill it or remove it"
            raise InputError(entry.path, expected=expected, found="an empty folder", todo=todo)
        yield files
    loose = [entry for entry in entries if not entry.is_dir()]
    samples = [] if classes else [entry.path for entry in loose if not is_hidden(entry.name)]
    yield _class_files(root, split, UNLABELLED, samples)
    others = {entry.path for entry in loose}.difference(samples)
    for entry in entries:
        if entry.is_dir() and is_hidden(entry.name):
            others.update(_walk(entry.path))
    yield _class_files(root, split, NO_CLASS, others)


def _class_files(root: str, split: str, class_name: str, paths: Iterable[str]) -> ClassFiles:
    start = len(os.path.join(root, ""))
    return ClassFiles(split, class_name, sorted((path[start:] for path in paths), key=display_path))


def _held_out(files: ClassFiles, share: float) -> list[ClassFiles]:
    """Divide the files of a class into train and val."""
    visible = [] if files.class_name == NO_CLASS else [path for path in files.paths if not is_hidden(path)]
    count = min(max(1, round(share * len(visible))), len(visible) - 1)
    chosen = set(heapq.nsmallest(count, visible, key=lambda path: hashlib.sha256(os.fsencode(path)).digest()))
    train, val = ([path for path in files.paths if (path in chosen) == side] for side in (False, True))
    return [files._replace(paths=train), files._replace(split="val", paths=val)]


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


def _entries(folder: PathLike) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        return _unreadable(error)


def _unreadable(error: OSError) -> NoReturn:
    raise InputError(
        error.filename, expected="a readable folder", found=str(error.strerror), todo="correct its permissions"
    ) from None
