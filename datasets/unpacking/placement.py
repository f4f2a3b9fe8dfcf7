"""The layouts of tars that can be unpacked, and the class folder of each file; known from the headers alone.

    "tars"      <class>.tar, one for each class          -> train/<class>/**       (ILSVRC's training tar)
    "val"       flat ILSVRC2012_val_00000001.JPEG, ...   -> val/<synset>/*         (ILSVRC's validation tar)
    "splits"    train/<class>/**, val/<class>/**         -> the same
    "classes"   <class>/**                               -> train/<class>/**

Class folders may be in one more folder, as in imagenette/train/<class>/**. Files outside of class folders, such as a
README, are left out and counted. Any other layout is refused.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple, NoReturn, Optional

from datasets import imagenet
from datasets.base.errors import InputError
from datasets.unpacking.archive import InnerTar, Member, opened, safe_parts

Parts = tuple[str, ...]
SPLITS = ("train", "val")
TAR = ".tar"
KINDS = {
    "tars": "a tar of one <class>.tar per class",
    "val": "the flat validation images of ILSVRC 2012",
    "splits": "folders train/<class>/ and val/<class>/",
    "classes": "folders <class>/",
}


class Placement(NamedTuple):
    """Which class folder the files of an archive go to."""

    kind: str  # one of KINDS
    prefix: Parts = ()  # the folder around all class folders
    val_synsets: Optional[tuple[str, ...]] = None  # of validation images 1, 2, ...; None: use the packaged table
    inner_class: str = ""  # of all files, in a tar of "tars"

    def __call__(self, parts: Parts) -> Optional[Parts]:
        """Return a file's path below the root: split, class, and more; None if the file is left out."""
        if self.inner_class:
            return ("train", self.inner_class, *parts)
        if self.kind == "val":
            return ("val", val_synset(parts[-1], self.val_synsets) or "", parts[-1])
        if parts[: len(self.prefix)] != self.prefix:
            return None
        parts = parts[len(self.prefix) :]
        if self.kind == "splits":
            return parts if parts[0] in SPLITS and len(parts) > 2 else None
        return ("train", *parts) if len(parts) > 1 else None


class Survey(NamedTuple):
    """What the headers of an archive say."""

    placement: Placement
    folders: set[str]  # "train/<class>", "val/<class>"
    inner: list[InnerTar]
    bytes: int  # of all files
    left_out: int  # files


def val_synset(name: str, synsets: Optional[tuple[str, ...]]) -> Optional[str]:
    """Return the synset of a validation image by the devkit's list, else by the packaged table; None if unknown."""
    number = imagenet.val_number(name)
    if number is None or synsets is None:
        return imagenet.val_synset(name)
    return synsets[number - 1] if 0 < number <= len(synsets) else None


def survey(path: Path, val_synsets: Optional[tuple[str, ...]]) -> Survey:
    """Read all headers of an archive. The memory used grows with the number of folders and inner tars, not of files.

    Args:
        path: of the archive.
        val_synsets: synsets of validation images 1, 2, ..., from the devkit; None: use the packaged table.

    Raises:
        InputError: the archive cannot be read, is unsafe, or has no known layout.
    """
    files: dict[Parts, int] = Counter()  # by the folder that they are in
    synsets: set[str] = set()  # of validation images
    val_images, others = 0, ""  # number of validation images; the name of a file that is none
    tars: list[Member] = []
    total = 0
    with opened(path) as archive:
        compressed = archive.compressed
        for member in archive.members():
            name = member.parts[-1]
            files[member.parts[:-1]] += 1
            total += member.size
            if name.endswith(TAR):
                tars.append(member)
            number = imagenet.val_number(name)
            synset = None if number is None else val_synset(name, val_synsets)
            val_images += number is not None
            if synset is None:
                others = others or name
            else:
                synsets.add(synset)
    if not files:
        raise InputError(path, expected="an archive of images", found="no file in it", todo="name another one")
    if tars:
        inner = _inner(path, tars, sum(files.values()) - len(tars), compressed)
        return Survey(Placement("tars"), {f"train/{each.class_name}" for each in inner}, inner, total, 0)
    if val_images and set(files) == {()}:
        if others:
            _refuse_among_val(path, others, val_synsets)
        return Survey(Placement("val", (), val_synsets), {f"val/{synset}" for synset in synsets}, [], total, 0)
    if others.startswith("ILSVRC2012_test_"):
        _refuse_layout(path, "the test images, whose classes are not published")
    return _class_folders(path, files, total)


def _class_folders(path: Path, files: dict[Parts, int], total: int) -> Survey:
    """Survey a tree of class folders, from the number of files in each folder and the bytes of all files."""
    top = {folder[:1] for folder in files}
    prefix = top.pop() if len(top) == 1 else ()
    if prefix and (prefix[0] in SPLITS or max(map(len, files)) == 1):
        prefix = ()  # the one folder is itself a split or a class
    below = {folder[len(prefix)] for folder in files if len(folder) > len(prefix)}
    splits = set(SPLITS) <= below or (bool(below & set(SPLITS)) and below <= {*SPLITS, "test"})
    placement = Placement("splits" if splits else "classes", prefix)
    left_out = 0
    folders: set[str] = set()
    for folder, count in files.items():
        placed = placement((*folder, "*"))
        if placed is None:
            left_out += count
        else:
            folders.add("/".join(placed[:2]))
    if not folders:
        _refuse_layout(path, f"{left_out:,} files outside of class folders")
    return Survey(placement, folders, [], total, left_out)


def _inner(path: Path, tars: list[Member], others: int, compressed: bool) -> list[InnerTar]:
    if others or any(len(member.parts) > 1 for member in tars):
        _refuse_layout(path, f"{len(tars):,} tars, some of them in folders or among {others:,} other files")
    if compressed:
        todo = "decompress it first (gunzip, bunzip2, unxz); the inner tars are then read without a copy"
        raise InputError(path, expected="a plain tar of tars", found="a compressed one", todo=todo)
    by_class: dict[str, InnerTar] = {}
    for member in tars:
        name = member.parts[0]
        class_name = name[: -len(TAR)]
        if len(safe_parts(class_name, f"{path}: {name}")) != 1:
            raise InputError(path, expected="tars named after their classes", found=repr(name), todo="rename it")
        if class_name in by_class:
            raise InputError(path, expected="each class once", found=f"{name} twice", todo="pack the archive again")
        by_class[class_name] = InnerTar(name, class_name, member.offset, member.size)
    return list(by_class.values())


def _refuse_layout(path: Path, found: str) -> NoReturn:
    raise InputError(
        path,
        expected=f"one of: {'; '.join(KINDS.values())}",
        found=found,
        todo="unpack it yourself into folders train/<class>/ and val/<class>/",
    )


def _refuse_among_val(path: Path, name: str, synsets: Optional[tuple[str, ...]]) -> NoReturn:
    last = len(synsets) if synsets is not None else imagenet.VAL_IMAGES
    raise InputError(
        path,
        expected=f"validation images ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{last:08d}.JPEG only",
        found=repr(name),
        todo="name the devkit that belongs to them, or sort these images into class folders yourself",
    )
