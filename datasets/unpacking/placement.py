"""Which class folder each file of a tar belongs to, known from the headers alone.

Every archive ends as train/<class>/** and val/<class>/** below the root:

    a tar of tars           <class>.tar: train/<class>, or val/<class> if the inner tar lies in val/
    the validation images   flat ILSVRC2012_val_00000001.JPEG ...: val/<wnid>, by the devkit or the packaged table
    folders of splits       train/<class>/**, val/<class>/**: as they are; other folders beside them are left out
    class folders           <class>/**: train/<class>
    files only              one class, named as the folder that they are in or else as the archive

One folder around everything is ignored, whatever its name. Files beside class folders (a README) are left out.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple, NoReturn, Optional

from datasets import imagenet
from datasets.base.errors import InputError
from datasets.unpacking.archive import Member, opened, safe_parts

Parts = tuple[str, ...]
SPLITS = ("train", "val")
TAR = ".tar"
KINDS = {
    "tars": "a tar of one tar per class",
    "val": "the flat validation images of ILSVRC 2012",
    "splits": "folders train/<class> and val/<class>",
    "classes": "class folders",
    "files": "files of one class",
}


class Placement(NamedTuple):
    """Where the files of an archive go."""

    kind: str  # one of KINDS
    prefix: Parts = ()  # folders around everything
    folder: Parts = ()  # split and class of all files, where they have one in common
    val_synsets: Optional[tuple[str, ...]] = None  # of validation image 1, 2, ...; none: the packaged table

    def __call__(self, parts: Parts) -> Optional[Parts]:
        """Split, class and path of a file below the root; none for a file that is left out."""
        if self.kind == "val":
            return ("val", val_synset(parts[-1], self.val_synsets) or "", parts[-1])
        if parts[: len(self.prefix)] != self.prefix:
            return None
        inner = parts[len(self.prefix) :]
        if self.folder:
            return (*self.folder, *inner)
        if self.kind == "splits":
            return inner if inner[0] in SPLITS and len(inner) > 2 else None
        return ("train", *inner) if len(inner) > 1 else None


def val_synset(name: str, synsets: Optional[tuple[str, ...]]) -> Optional[str]:
    """The class of a validation image by the devkit's list or else the packaged table; none if it is not in it."""
    number = imagenet.val_number(name)
    if number is None or synsets is None:
        return imagenet.val_synset(name)
    return synsets[number - 1] if 0 < number <= len(synsets) else None


class Inner(NamedTuple):
    """A tar stored in a plain tar."""

    name: str
    folder: Parts
    offset: int
    size: int


class Survey(NamedTuple):
    """What the headers of an archive say."""

    placement: Placement
    folders: dict[Parts, int]  # files of each class folder; 0 where only reading the inner tar tells
    inner: list[Inner]
    bytes: int  # of the files
    left_out: int


def survey(path: Path, val_synsets: Optional[tuple[str, ...]]) -> Survey:
    """Read all headers of an archive; memory grows with the number of folders and inner tars, not of files.

    Args:
        val_synsets: of validation image 1, 2, ..., as the devkit says; none: by the packaged table.

    Raises:
        InputError: the archive cannot be read, is unsafe, holds no images, or is another than its published name says.
    """
    files: dict[Parts, int] = Counter()  # by the folder that they are in
    synsets: dict[Parts, int] = Counter()  # of files named as validation images are
    no_val_image = ""
    tars: list[Member] = []
    total = 0
    name = ""
    with opened(path) as archive:
        compressed = archive.compressed
        for member in archive.members():
            name = member.parts[-1]
            files[member.parts[:-1]] += 1
            total += member.size
            if name.endswith(TAR):
                tars.append(member)
            synset = val_synset(name, val_synsets) if imagenet.val_number(name) is not None else None
            if synset is None:
                no_val_image = no_val_image or name
            else:
                synsets[("val", synset)] += 1
    if not files:
        raise InputError(path, expected="an archive of images", found="no file in it", todo="name another one")
    prefix = _common(files)
    inner: list[Inner] = []
    if tars:
        placement = Placement("tars", prefix)
        inner = _inner(path, tars, sum(files.values()) - len(tars), compressed)
    elif (synsets or imagenet.val_number(name) is not None) and set(files) == {prefix}:
        if no_val_image:
            _refuse_among_val(path, no_val_image, val_synsets)
        placement = Placement("val", prefix, (), val_synsets)
    else:
        placement = _of_folders(path, files, prefix, name)
    _check_published(path, placement, inner)
    if inner:
        return Survey(placement, {each.folder: 0 for each in inner}, inner, total, 0)
    if placement.kind == "val":
        return Survey(placement, dict(synsets), [], total, 0)
    folders: dict[Parts, int] = Counter()
    for parent, count in files.items():
        placed = placement((*parent, "*"))
        folders[placed[:2] if placed else ()] += count
    left_out = folders.pop((), 0)
    if not folders:
        found = f"{left_out:,} files in {'/'.join(prefix) or 'no folder'}"
        raise InputError(path, expected="class folders", found=found, todo="put the images into one folder per class")
    return Survey(placement, dict(folders), [], total, left_out)


def _of_folders(path: Path, files: dict[Parts, int], prefix: Parts, name: str) -> Placement:
    """Splits where a folder holds train/ and val/, or nothing but splits (as in `datasets.layout`), else classes."""
    below: dict[Parts, set[str]] = {}
    for parent in files:
        for depth, part in enumerate(parent):
            below.setdefault(parent[:depth], set()).add(part)
    bases = [base for base, names in below.items() if set(SPLITS) <= names or names <= {*SPLITS, "test"}]
    bases = [base for base in bases if set(SPLITS) & below[base]]
    if bases:
        bases = [base for base in bases if len(base) == min(map(len, bases))]
        if len(bases) > 1:
            found = " and ".join("/".join(base) for base in sorted(bases)[:2])
            todo = "unpack it yourself and name the right folder as data root"
            raise InputError(path, expected="one folder that holds train/ and val/", found=found, todo=todo)
        return Placement("splits", bases[0])
    if set(files) != {prefix}:
        return Placement("classes", prefix)
    if name.startswith("ILSVRC2012_test_"):
        found = "the test images, whose classes are not published"
        raise InputError(path, expected="training or validation images", found=found, todo="leave this archive out")
    return Placement("files", prefix, ("train", prefix[-1] if prefix else _stem(path.name, str(path))))


def _inner(path: Path, tars: list[Member], others: int, compressed: bool) -> list[Inner]:
    """The inner tars with their class folders."""
    if others:
        found = f"{len(tars):,} tars and {others:,} other files"
        todo = "unpack it yourself and name its parts"
        raise InputError(path, expected="tars of one class each, or no tars", found=found, todo=todo)
    if compressed:
        todo = "decompress it first (gunzip, bunzip2, unxz): inner tars are read where they lie"
        raise InputError(path, expected="a plain tar of tars", found="a compressed one", todo=todo)
    by_folder: dict[Parts, Inner] = {}
    for member in tars:
        name = "/".join(member.parts)
        split = member.parts[-2] if len(member.parts) > 1 and member.parts[-2] in SPLITS else "train"
        folder = (split, _stem(member.parts[-1], f"{path}: {name}"))
        if folder in by_folder:
            found = f"{by_folder[folder].name} and {name}"
            raise InputError(path, expected="each class once", found=found, todo="pack the archive anew")
        by_folder[folder] = Inner(name, folder, member.offset, member.size)
    return list(by_folder.values())


def _stem(name: str, where: str) -> str:
    """The class that a tar is named after."""
    stem = name
    for suffix in (".gz", ".bz2", ".xz", ".tgz", TAR):  # in this order: .tar.gz loses both
        stem = stem[: -len(suffix)] if stem.endswith(suffix) else stem
    if len(safe_parts(stem, where)) != 1:
        raise InputError(where, expected="a tar named after its class", found=repr(name), todo="rename it")
    return stem


def _common(parents: dict[Parts, int]) -> Parts:
    """The folders that all files are in."""
    common = next(iter(parents))
    for parent in parents:
        same = next((i for i, (a, b) in enumerate(zip(common, parent)) if a != b), min(len(common), len(parent)))
        common = common[:same]
    return common


def _refuse_among_val(path: Path, name: str, synsets: Optional[tuple[str, ...]]) -> NoReturn:
    last = len(synsets) if synsets is not None else imagenet.VAL_IMAGES
    raise InputError(
        path,
        expected=f"validation images ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{last:08d}.JPEG only",
        found=repr(name),
        todo="name the devkit that belongs to them, or sort these images into class folders yourself",
    )


def _check_published(path: Path, placement: Placement, inner: list[Inner]) -> None:
    expected = {imagenet.TRAIN_TAR: "tars", imagenet.VAL_TAR: "val"}.get(path.name)
    if expected is None:
        return
    todo = "download the published archive, or rename this one"
    if placement.kind != expected:
        raise InputError(path, expected=KINDS[expected], found=KINDS[placement.kind], todo=todo)
    known = set(imagenet.synsets())
    unknown = sorted(each.name for each in inner if each.folder[1] not in known)
    if unknown:
        found = f"{len(unknown)} others, first {unknown[0]!r}"
        raise InputError(path, expected="tars named after the 1,000 synsets", found=found, todo=todo)
