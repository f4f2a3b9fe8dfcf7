"""The plan of a validation: which folders, cut into which parts, in which units of work."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

from datasets.base.digests import value_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.expected import EXPECTED
from datasets.layout import NO_CLASS, ClassFolder, class_folders, hold_out, is_hidden, list_files
from datasets.manifest.faults import DEFAULTS, Policy
from datasets.validation.copies import MOST_BITS
from datasets.validation.parts import VERSION, Part, Unit, display_path

PART_FILES = 8192  # of a larger folder there are several parts: what one process holds in memory at a time
UNITS = 64  # at most about as many; one is a task of the pipeline
UNIT_FILES = 256  # at least, where there are as many: starting a unit costs as much as examining a few files


class Options(NamedTuple):
    """What a validation's result depends on, besides the files."""

    val_share: float = 0.1
    policy: Policy = DEFAULTS
    expect: Optional[str] = None
    near_duplicates: Optional[int] = None
    min_side: int = 16

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        for name, value, right, expected in (
            ("val_share", self.val_share, 0 < self.val_share < 1, "a share above 0 and below 1"),
            ("expect", self.expect, self.expect in (None, *EXPECTED), " or ".join(EXPECTED)),
            ("min_side", self.min_side, self.min_side > 0, "at least 1 pixel"),
            (
                "near_duplicates",
                self.near_duplicates,
                self.near_duplicates is None or 0 <= self.near_duplicates <= MOST_BITS,
                f"0 to {MOST_BITS} bits",
            ),
        ):
            if not right:
                raise InputError(name, expected=expected, found=str(value), todo="correct it")


DEFAULT = Options()


class Plan(NamedTuple):
    """A validation that is about to be made. `request` is what it depends on, as it stands in validation.json."""

    root: Path
    out: Path
    working: Path
    options: Options
    request: dict[str, Any]
    units: list[Unit]

    @property
    def parts(self) -> list[Part]:
        """All parts in the order of the manifest, but for the splits of those that hold out files."""
        return [part for unit in self.units for part in unit.parts]


def request_of(root: PathLike, name: Optional[str], options: Options) -> dict[str, Any]:
    """Everything that the result depends on, but the files.

    Raises:
        InputError: the root is missing, or an option is out of range.
    """
    options.check()
    if not Path(root).is_dir():
        found = "a file" if Path(root).exists() else "nothing there"
        raise InputError(root, expected="a folder of images", found=found, todo="correct the data root")
    root = Path(root).resolve()
    safe_name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name or root.name).strip("-.") or "images"
    return {
        "name": safe_name,
        "root": str(root),
        **options._asdict(),
        "policy": dict(options.policy),
        "version": VERSION,
    }


def make_plan(
    root: PathLike, out: PathLike, options: Options, *, name: Optional[str] = None, full: bool = False
) -> Plan:
    """List the files of a data set, without opening one, and share them out.

    Raises:
        InputError: the layout is at fault, or an option is.
    """
    root, out = Path(root), Path(out)
    request = request_of(root, name, options)
    folders, holds_out = class_folders(root)
    working = out.with_name(f"{out.name}.partial-{value_digest(request)}")
    if full:
        shutil.rmtree(working, ignore_errors=True)
    parts: list[Part] = []
    for folder in folders:
        parts += _parts_of(root, folder, options, holds_out)
    if not any(part.folder.class_name for part in parts):
        todo = "correct the data root (see `mae sample-data`)"
        raise InputError(root, expected="images in class folders", found="no files", todo=todo)
    _check_same_classes(root, parts, options.policy)
    looks = options.near_duplicates is not None
    share = max(UNIT_FILES, -(-sum(part.files for part in parts) // UNITS))
    units = [Unit(root, working, out, group, looks, full) for group in _groups(parts, share)]
    return Plan(root, out, working, options, request, units)


def _parts_of(root: Path, folder: ClassFolder, options: Options, holds_out: bool) -> Iterator[Part]:
    names = list_files(root, folder)
    if options.policy["empty_class"] == "fail" and not folder.loose and all(map(is_hidden, names)):
        where, todo = root / folder.path, "fill it or remove it"
        raise InputError(where, expected="images of this class", found="an empty folder", todo=todo)
    if not names:
        return
    limit = hold_out(names, options.val_share) if holds_out and folder.class_name != NO_CLASS else None
    stem = _part_name(folder)
    if len(names) <= PART_FILES:
        yield Part(f"{stem}.parquet", folder, len(names), limit)
        return
    paths = sorted(map(display_path, names))
    firsts = ["", *paths[PART_FILES::PART_FILES]]
    for number, (first, end) in enumerate(zip(firsts, [*firsts[1:], None])):
        files = min(PART_FILES, len(paths) - number * PART_FILES)
        yield Part(f"{stem}.{number:05d}.parquet", folder, files, limit, first, end)


def _part_name(folder: ClassFolder) -> str:
    """A name without dots that no other folder has."""
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
        todo = (
            "sort the validation images into the class folders of train/, or leave them out: --policy one_split=exclude"
        )
        found = f"{len(unknown)} others, first {unknown[0]!r}"
        raise InputError(root / "val", expected="the classes of train/", found=found, todo=todo)
