"""Validate a folder of images: decode every file, give each a row in the manifest, write totals to validation.json.

`ValidationPlan.make` lists the files, `ValidationUnit.examine` reads them, in as many processes as there are, and
`ValidationPlan.conclude` joins what they found. All work is in `<out>.partial-<request>` until conclude renames it. An
interrupted validation leaves the tables of finished units there, and the next one takes their rows over.
"""

from __future__ import annotations

import filecmp
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.base.digests import file_digest, value_digest
from datasets.base.errors import InputError, room_for
from datasets.base.files import PathLike, StageResult, refuse_foreign, remove_leftovers, replace_directory, write_json
from datasets.base.parallel import in_processes
from datasets.layout import NO_CLASS, ClassFiles, list_files, outside
from datasets.manifest.faults import outcome
from datasets.manifest.rows import MANIFEST, write_manifest
from datasets.validation.options import ValidationOptions
from datasets.validation.unit import TABLES, VALIDATION, ValidationUnit
from datasets.validation.whole import Whole

logger = logging.getLogger(__name__)

SUMMARY = "validation.json"
DEFAULT = ValidationOptions()
UNITS = 64  # at most about as many; one is a task of the pipeline
UNIT_FILES = 256  # at least, if there are as many: starting a unit costs as much as examining a few files
_SECONDS = 10.0  # between two lines of progress


class Validation(StageResult):
    """A validated data set.

    `train` and `val` count the images that are kept, `faults` the rows of each status except "ok", `found` the rows
    with each fault, `warnings` the files of which a decoder warned. `examined` counts the files that this call read.
    """

    directory: Path
    root: Path
    name: str
    manifest_digest: str
    train: int
    val: int
    classes: list[str]
    faults: dict[str, int]
    found: dict[str, int]
    warnings: dict[str, int]
    policy: dict[str, str]
    examined: int = 0


class ValidationPlan(NamedTuple):
    """A validation of which the files are listed. `request`, which validation.json repeats, is what it depends on."""

    root: Path
    out: Path
    working: Path
    options: ValidationOptions
    request: dict[str, Any]
    units: list[ValidationUnit]

    @classmethod
    def make(
        cls,
        root: PathLike,
        out: PathLike,
        *,
        options: ValidationOptions = DEFAULT,
        name: Optional[str] = None,
        full: bool = False,
    ) -> ValidationPlan:
        """List the files of a data set and divide them into units of work.

        Raises:
            InputError: the layout or an option is wrong, or `out` contains something else.
        """
        root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))
        refuse_foreign(out, SUMMARY)
        request = options.request(root, name)
        working = out.with_name(f"{out.name}.partial-{value_digest(request)}")
        if full:
            shutil.rmtree(working, ignore_errors=True)
        empty = options.policy["empty_class"] != "fail"
        files = list_files(root, val_share=options.val_share, empty_classes=empty)
        _check_classes(root, files, options)
        finished, looks = None if full else out, options.near_duplicates is not None
        units = [
            ValidationUnit(root, working, finished, number, classes, looks)
            for number, classes in enumerate(_divided(files, UNITS, UNIT_FILES))
        ]
        return cls(root, out, working, options, request, units)

    def conclude(self, examined: Iterable[int]) -> Validation:
        """Find copies, apply the policy, write the manifest, and rename the working directory to `out`.

        Args:
            examined: the results of all units.

        Raises:
            InputError: a fault was found on which the policy fails, or nothing usable is left. The tables are kept: the
                next call examines only files that changed.
        """
        count = sum(examined)
        reason = self._why_again()
        if reason is None:
            logger.info("%s: reusing the validation of %s", self.out, self.root)
            shutil.rmtree(self.working, ignore_errors=True)
            return load_validation(self.out).model_copy(update={"reused": True, "examined": count})
        if self.out.exists() and any(self.out.iterdir()):
            logger.warning("%s: validating again: %s", self.out, reason)
        with room_for(VALIDATION, self.out.parent):
            summary = self._write()
        result = load_validation(self.out).model_copy(update={"examined": count})
        _log_summary(result, summary)
        return result

    def _why_again(self) -> Optional[str]:
        """Why `out` cannot be reused; None if it can."""
        damage = _damage(self.out)
        if damage is not None:
            return damage
        summary = json.loads((self.out / SUMMARY).read_text())
        changed = [key for key, value in self.request.items() if summary.get(key) != value]
        if changed:
            return f"another {', '.join(changed)} than then"
        tables = [unit.table for unit in self.units]
        same, _, _ = filecmp.cmpfiles(self.working, self.out, tables, shallow=False)
        return None if len(same) == len(tables) == len(list((self.out / TABLES).iterdir())) else "files changed"

    def _write(self) -> dict[str, Any]:
        """Write the manifest and validation.json, and make the working directory the result."""
        tables, manifest = [self.working / unit.table for unit in self.units], self.working / MANIFEST
        for path in self.working.rglob("*"):
            if path.is_file() and path not in tables:
                path.unlink()  # left by an interrupted validation
        rows = pa.concat_tables([_read_table(path) for path in tables]).replace_schema_metadata().combine_chunks()
        whole = Whole(self.root, rows, self.options)
        write_manifest(manifest, whole.manifest())
        whole.refuse(manifest)
        summary = {**self.request, **whole.totals(), "classes": whole.classes, "outside": outside(self.root)}
        write_json(self.working / SUMMARY, {**summary, "manifest_digest": file_digest(manifest)})
        remove_leftovers(self.out.parent, self.out.name)
        replace_directory(self.working, self.out)  # if killed before this line, the next call finds all in `working`
        return summary


def validate(
    root: PathLike,
    out: PathLike,
    *,
    options: ValidationOptions = DEFAULT,
    name: Optional[str] = None,
    full: bool = False,
    workers: Optional[int] = None,
) -> Validation:
    """Decode every file under `root` to its end and write manifest.parquet and validation.json to `out`.

    `datasets.layout` lists the layouts. The same tree gives the same bytes of manifest.parquet. A file that still has
    the path, size, mtime and inode that it had in an earlier validation in `out`, or in an interrupted one, is not read
    again, except with `full`. If nothing changed, `out` stays as it is.

    Args:
        workers: processes that decode; default: one per core.

    Raises:
        InputError: the layout is wrong, a fault was found on which the policy fails, nothing usable is left, the disk
            is full, or `out` contains something else.
    """
    plan = ValidationPlan.make(root, out, options=options, name=name, full=full)
    few = len(plan.units) == 1
    results = in_processes(ValidationUnit.examine, plan.units, workers=1 if few else workers)
    return plan.conclude(_with_progress(results, plan))


def _check_classes(root: Path, files: list[ClassFiles], options: ValidationOptions) -> None:
    train, val = ({part.class_name for part in files if part.split == split} for split in ("train", "val"))
    if not (train | val) - {NO_CLASS}:
        todo = "correct the data root (see `mae sample-data`)"
        raise InputError(root, expected="images in class folders", found="no files", todo=todo)
    unknown = sorted(val - train - {NO_CLASS})
    if unknown and options.policy["one_split"] != "exclude":
        todo = "sort the validation images into the class folders of train/, or exclude these classes: "
        found = f"{len(unknown)} others, first {unknown[0]!r}"
        todo += "--policy one_split=exclude"
        raise InputError(root / "val", expected="the classes of train/", found=found, todo=todo)


def _divided(files: list[ClassFiles], units: int, least: int) -> Iterator[list[tuple[str, str, str]]]:
    """Cut the files into about `units` parts of equal size, each of at least `least` files, in their order.

    A part has the form of `ValidationUnit.classes`.
    """
    size = max(least, -(-sum(len(part.paths) for part in files) // units))
    unit: list[tuple[str, str, str]] = []
    room = size
    for part in files:
        start = 0
        while start < len(part.paths):
            piece = part.paths[start : start + room]
            unit.append((part.split, part.class_name, "\0".join(piece)))
            start, room = start + len(piece), room - len(piece)
            if not room:
                yield unit
                unit, room = [], size
    if unit:
        yield unit


def _read_table(path: Path) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(use_threads=False)


def load_validation(directory: PathLike) -> Validation:
    """Read a finished validation and verify its manifest.

    Raises:
        InputError: there is none, or its manifest is missing or changed.
    """
    directory = Path(directory)
    fault = _damage(directory)
    if fault is not None:
        raise InputError(directory, expected="a finished validation", found=fault, todo="run `mae data validate` first")
    summary = json.loads((directory / SUMMARY).read_text())
    names = ("name", "manifest_digest", "train", "val", "classes", "faults", "found", "warnings", "policy")
    return Validation(directory=directory, root=Path(summary["root"]), **{key: summary[key] for key in names})


def _with_progress(results: Iterable[int], plan: ValidationPlan) -> Iterator[int]:
    """Yield the results of the units and log a line of progress every _SECONDS."""
    total, done, last = sum(unit.files for unit in plan.units), 0, time.monotonic()
    for examined, unit in zip(results, plan.units):
        yield examined
        done += unit.files
        if time.monotonic() - last > _SECONDS:
            last = time.monotonic()
            logger.info("%s: %s of %s files", plan.root, f"{done:,}", f"{total:,}")


def _damage(out: Path) -> Optional[str]:
    """What is wrong with a finished validation; None if nothing is."""
    try:
        summary = json.loads((out / SUMMARY).read_text())
        if summary["manifest_digest"] != file_digest(out / MANIFEST):
            return f"{MANIFEST} changed since it was written"
    except OSError as error:
        return f"no readable {Path(error.filename).name}"
    except (ValueError, KeyError, TypeError):
        return f"a damaged {SUMMARY}"
    return None


def _log_summary(result: Validation, summary: dict[str, Any]) -> None:
    classes = f"{len(result.classes)} classes"
    logger.info("%s: %d + %d usable images of %s", result.root, result.train, result.val, classes)
    for status, count in result.faults.items():
        verb = "kept" if status == "converted" or outcome([status], result.policy).kept else "excluded"
        manifest = result.directory / MANIFEST
        logger.warning("%s: %d files are %s (%s); see %s", result.root, count, status, verb, manifest)
    for row in summary["excluded"][:10]:
        logger.warning("excluded %s: %s, %s", row["path"], row["status"], row["reason"])
    if summary["outside"]:
        others = ", ".join(summary["outside"])
        logger.info("%s: not part of the data set, which is in train/ and val/: %s", result.root, others)
