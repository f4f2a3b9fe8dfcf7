"""List the folders of a data set and divide their files into units of work, without opening a file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from datasets.base.errors import InputError
from datasets.layout import NO_CLASS, ClassFolder, class_folders, hold_out, is_hidden, list_files
from datasets.manifest.faults import Policy
from datasets.validation.options import ValidationOptions
from datasets.validation.parts import Part, ValidationUnit, display_path

PART_FILES = 8192  # a larger folder is cut into several parts: the rows that one process holds in memory at a time
UNITS = 64  # at most about as many; one is a task of the pipeline
UNIT_FILES = 256  # at least, if there are as many: starting a unit costs as much as examining a few files


def plan_units(root: Path, working: Path, finished: Optional[Path], options: ValidationOptions) -> list[ValidationUnit]:
    """Return the units of a validation, with the parts in the order of the manifest.

    Raises:
        InputError: the layout of the folders is wrong.
    """
    folders, holds_out = class_folders(root)
    parts = [part for folder in folders for part in _parts_of(root, folder, options, holds_out)]
    if not any(part.folder.class_name for part in parts):
        todo = "correct the data root (see `mae sample-data`)"
        raise InputError(root, expected="images in class folders", found="no files", todo=todo)
    _check_same_classes(root, parts, options.policy)
    looks = options.near_duplicates is not None
    share = max(UNIT_FILES, -(-sum(part.files for part in parts) // UNITS))
    return [ValidationUnit(root, working, finished, group, looks) for group in _groups(parts, share)]


def _parts_of(root: Path, folder: ClassFolder, options: ValidationOptions, holds_out: bool) -> Iterator[Part]:
    names = list_files(root, folder)
    if options.policy["empty_class"] == "fail" and not folder.loose and all(map(is_hidden, names)):
        where, todo = root / folder.path, "fill it or remove it"
        raise InputError(where, expected="images of this class", found="an empty folder", todo=todo)
    if not names:
        return
    limit = hold_out(names, options.val_share) if holds_out and folder.class_name != NO_CLASS else None
    paths = sorted(map(display_path, names))
    firsts = ["", *paths[PART_FILES::PART_FILES]]
    for number, (first, end) in enumerate(zip(firsts, [*firsts[1:], None])):
        files = min(PART_FILES, len(paths) - number * PART_FILES)
        yield Part(_name(folder), number, folder, files, limit, first, end)


def _name(folder: ClassFolder) -> str:
    """Return a file name that no other folder has."""
    digest = hashlib.sha256(os.fsencode(f"{folder.path}\0{folder.class_name}")).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.class_name)[:60].strip("-")
    return "-".join(filter(None, (folder.split, readable, digest)))


def _groups(parts: list[Part], share: int) -> Iterator[list[Part]]:
    group: list[Part] = []
    for part in parts:
        group.append(part)
        if sum(member.files for member in group) >= share:
            yield group
            group = []
    if group:
        yield group


def _check_same_classes(root: Path, parts: list[Part], policy: Policy) -> None:
    train, val = (
        {part.folder.class_name for part in parts if part.folder.split == split} for split in ("train", "val")
    )
    unknown = sorted(val - train - {NO_CLASS})
    if unknown and policy["one_split"] != "exclude":
        todo = "sort the validation images into the class folders of train/, or exclude these classes: "
        found = f"{len(unknown)} others, first {unknown[0]!r}"
        todo += "--policy one_split=exclude"
        raise InputError(root / "val", expected="the classes of train/", found=found, todo=todo)
