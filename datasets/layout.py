"""Which files make a data set: folders to (split, class, file), before any file is opened.

Three layouts are known:

    root/train/<class>/**, root/val/<class>/**    ImageNet style; without val/ a share of train/ is held out
    root/<class>/**                               class folders; a share of each class is held out for validation
    root/*                                        a flat folder: the one class "unlabelled"; a share is held out
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from datasets.stage import InputError, PathLike

UNLABELLED = "unlabelled"
NO_CLASS = ""  # a file that stands beside class folders, or is hidden, belongs to no class


class FileEntry(NamedTuple):
    """One file of the data set, as the directory listing shows it."""

    path: str  # relative to the root, with "/"
    split: str  # train | val
    class_name: str  # NO_CLASS for a file that cannot be a sample
    bytes: int
    mtime_ns: int


def scan(root: PathLike, *, val_share: float) -> list[FileEntry]:
    """List every file of the data set under `root`, sorted by path.

    Where the layout has no val/ folder, the share `val_share` of each class's files is held out: those whose relative
    paths have the smallest SHA-256, so the choice depends on nothing else. A class of two files or more keeps at
    least one on each side.

    Raises:
        InputError: the root is missing or holds no files, a folder is not readable, a class folder is empty, a class of
            val is not in train, or `val_share` is not between 0 and 1.
    """
    if not 0 < val_share < 1:
        raise InputError("val_share", expected="a share above 0 and below 1", found=str(val_share), todo="correct it")
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing there"
        raise InputError(root, expected="a folder of images", found=found, todo="correct the data root")
    splits = _split_folders(root)
    if not splits:
        entries = _hold_out(list(_split_entries(root, root, "train")), val_share)
    elif splits == ["train"]:
        entries = _hold_out(list(_split_entries(root, root / "train", "train")), val_share)
    else:
        entries = [entry for split in splits for entry in _split_entries(root, root / split, split)]
        _check_same_classes(root, entries)
    if not any(entry.class_name for entry in entries):
        raise InputError(
            root,
            expected="images in class folders",
            found="no files",
            todo="correct the data root (see `mae sample-data`)",
        )
    return sorted(entries)


def outside(root: PathLike) -> list[str]:
    """Names in the root that `scan` leaves out because the data set is in train/ and val/ beside them, sorted."""
    splits = _split_folders(Path(root))
    return sorted(set(os.listdir(root)) - set(splits)) if splits else []


def is_hidden(path: str) -> bool:
    """Whether a part of the relative path is a hidden file or folder, or what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _split_folders(root: Path) -> list[str]:
    """["train", "val"] or ["train"] where these folders are splits; among others train/ is a class (vehicles)."""
    folders = {name for name in _names(root) if (root / name).is_dir() and not is_hidden(name)}
    if {"train", "val"} <= folders:
        return ["train", "val"]
    return ["train"] if "train" in folders and folders <= {"train", "test"} else []


def _split_entries(root: Path, folder: Path, split: str) -> Iterator[FileEntry]:
    """The files of one split. Folders are classes; without folders all files are of the one class."""
    names = sorted(_names(folder))
    folders = {name for name in names if (folder / name).is_dir()}
    classes = {name for name in folders if not is_hidden(name)}
    for name in names:
        if name in classes:
            yield from _class_entries(root, folder / name, split)
        elif name in folders:
            yield from (_entry(root, file, split, NO_CLASS) for file in _walk(folder / name))
        else:
            yield _entry(root, str(folder / name), split, NO_CLASS if classes or is_hidden(name) else UNLABELLED)


def _class_entries(root: Path, folder: Path, split: str) -> list[FileEntry]:
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        raise InputError(
            ascii(str(folder)), expected="a class name in UTF-8", found="other bytes", todo="rename the folder"
        ) from None
    entries = [_entry(root, file, split, folder.name) for file in _walk(folder)]
    if all(is_hidden(entry.path) for entry in entries):
        raise InputError(folder, expected="images of this class", found="an empty folder", todo="fill it or remove it")
    return entries


def _walk(folder: Path) -> Iterator[str]:
    """Every file below, also through linked folders, except those that lead back to a folder above them."""
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        here = os.path.join(os.path.realpath(parent), "")
        folders[:] = [
            name
            for name in folders
            if not here.startswith(os.path.join(os.path.realpath(os.path.join(parent, name)), ""))
        ]
        for name in names:
            yield os.path.join(parent, name)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        return _unreadable(error)


def _unreadable(error: OSError) -> NoReturn:
    raise InputError(
        error.filename, expected="a readable folder", found=str(error.strerror), todo="correct its permissions"
    ) from None


def _entry(root: Path, path: str, split: str, class_name: str) -> FileEntry:
    relative = path[len(os.path.join(root, "")) :]
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing; validation gives it a row that says so
        return FileEntry(relative, split, class_name, 0, 0)
    return FileEntry(relative, split, class_name, status.st_size, status.st_mtime_ns)


def _hold_out(entries: list[FileEntry], share: float) -> list[FileEntry]:
    """Move the share of each class whose paths have the smallest digests to val."""
    by_class: dict[str, list[FileEntry]] = {}
    for entry in entries:
        if entry.class_name and not is_hidden(entry.path):
            by_class.setdefault(entry.class_name, []).append(entry)
    held_out: set[str] = set()
    for members in by_class.values():
        count = min(max(1, round(share * len(members))), len(members) - 1)
        members.sort(key=lambda entry: hashlib.sha256(os.fsencode(entry.path)).digest())
        held_out.update(entry.path for entry in members[:count])
    return [entry._replace(split="val") if entry.path in held_out else entry for entry in entries]


def _check_same_classes(root: Path, entries: list[FileEntry]) -> None:
    train = {entry.class_name for entry in entries if entry.split == "train"}
    unknown = sorted({entry.class_name for entry in entries if entry.split == "val"} - train - {NO_CLASS})
    if unknown:
        raise InputError(
            root / "val",
            expected="the classes of train/",
            found=f"{len(unknown)} others, first {unknown[0]!r}",
            todo="sort the validation images into the class folders of train/",
        )
