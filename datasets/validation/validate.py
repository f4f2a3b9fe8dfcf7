"""Validate a folder of images: decode every file, give each a row in the manifest, total them in validation.json.

plan -> units -> examine, in as many processes as there are -> conclude. Work goes on in `<out>.partial-<request>`: a
killed validation continues where it was, and only conclude's last step, a rename, makes it the result.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Optional

from datasets.base.digests import file_digest, value_digest
from datasets.base.errors import InputError, room_for
from datasets.base.files import PathLike, StageResult, fsync, refuse_foreign, write_json
from datasets.base.parallel import in_processes
from datasets.layout import outside
from datasets.manifest.faults import outcome
from datasets.manifest.rows import MANIFEST, manifest_writer
from datasets.validation.conclusion import Totals, manifest_tables
from datasets.validation.parts import PARTS, VALIDATION, Examined, examine
from datasets.validation.plan import DEFAULT, Options, Plan, make_plan, request_of
from datasets.validation.whole import judge

logger = logging.getLogger(__name__)

SUMMARY = "validation.json"
_SECONDS = 10.0  # between two lines of progress


class Validation(StageResult):
    """A validated data set.

    `train` and `val` count the images that are kept, `faults` the rows of each status but ok, `found` the rows with
    each fault, whatever became of them, `warnings` what decoders complained of and went on. `examined` counts the
    files that this call read.
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


def validation_directory(
    workspace: PathLike, root: PathLike, *, name: Optional[str] = None, options: Options = DEFAULT
) -> Path:
    """Where the pipeline validates `root`: named by it and by the options, so that a changed tree is updated."""
    request = request_of(root, name, options)
    return Path(workspace) / "datasets" / f"{request['name']}-{value_digest(request)}"


def validate(
    root: PathLike,
    out: PathLike,
    *,
    options: Options = DEFAULT,
    name: Optional[str] = None,
    full: bool = False,
    workers: Optional[int] = None,
) -> Validation:
    """Decode every file under `root` to its end and write manifest.parquet and validation.json to `out`.

    The layouts are those of `datasets.layout`. The same tree gives the same bytes of manifest.parquet. Files that still
    have the path, size, mtime and inode of an earlier validation in `out`, or of a killed one, are not read again,
    unless `full`. Where nothing changed at all, `out` stays as it is.
    `workers` processes decode; default: one per core.

    Raises:
        InputError: the layout is at fault, a fault was found for which the policy says "fail", nothing usable is left,
            the disk is full, or `out` holds something else.
    """
    found = plan(root, out, options=options, name=name, full=full)
    few = len(found.units) == 1
    results = in_processes(examine, found.units, workers=1 if few else workers)
    return conclude(found, list(_watched(results, found)))


def plan(
    root: PathLike,
    out: PathLike,
    *,
    options: Options = DEFAULT,
    name: Optional[str] = None,
    full: bool = False,
) -> Plan:
    """List the files of a data set and share them out in units of work for `datasets.validation.parts.examine`.

    Raises:
        InputError: the layout or an option is at fault, or `out` holds something else.
    """
    out = Path(os.path.abspath(out))
    refuse_foreign(out, SUMMARY)
    with room_for(VALIDATION, out.parent):
        return make_plan(os.path.abspath(root), out, options, name=name, full=full)


def conclude(plan: Plan, results: Iterable[Examined]) -> Validation:
    """Join the parts that were examined: find copies, apply the policy, write the manifest, and make it the result.

    Raises:
        InputError: a fault was found for which the policy says "fail", or nothing usable is left. The parts are kept:
            the next call examines only what was changed.
    """
    results = list(results)
    examined = sum(result.examined for result in results)
    unchanged = {name for result in results for name in result.unchanged}
    planned = [part.file for part in plan.parts]
    reason = _why_again(plan, planned, unchanged)
    if reason is None:
        logger.info("%s: reusing the validation of %s", plan.out, plan.root)
        shutil.rmtree(plan.working, ignore_errors=True)
        return load_validation(plan.out).model_copy(update={"reused": True, "examined": examined})
    if plan.out.exists() and any(plan.out.iterdir()):
        logger.warning("%s: validating again: %s", plan.out, reason)
    with room_for(VALIDATION, plan.out.parent):
        _gather_parts(plan, planned, unchanged)
        judgement = judge(plan)
        totals = Totals(plan)
        with manifest_writer(plan.working / MANIFEST) as append:
            for table in manifest_tables(plan, judgement, totals):
                append(table)
        fsync(plan.working / MANIFEST)
        totals.refuse()
        summary = {**plan.request, **totals.summary(), "classes": judgement.classes, "outside": outside(plan.root)}
        write_json(plan.working / SUMMARY, {**summary, "manifest_digest": file_digest(plan.working / MANIFEST)})
        _replace(plan.out, plan.working)
    result = load_validation(plan.out).model_copy(update={"examined": examined})
    _log_summary(result, summary)
    return result


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


def _watched(results: Iterable[Examined], plan: Plan) -> Iterator[Examined]:
    """The same, with a line of progress now and then."""
    total, done, last = sum(unit.files for unit in plan.units), 0, time.monotonic()
    for result in results:
        yield result
        done += result.files
        if time.monotonic() - last > _SECONDS:
            last = time.monotonic()
            logger.info("%s: %s of %s files", plan.root, f"{done:,}", f"{total:,}")


def _damage(out: Path) -> Optional[str]:
    """What is wrong with a finished validation as such; none if nothing is."""
    try:
        summary = json.loads((out / SUMMARY).read_text())
        if summary["manifest_digest"] != file_digest(out / MANIFEST):
            return f"{MANIFEST} changed since it was written"
    except OSError as error:
        return f"no readable {Path(error.filename).name}"
    except (ValueError, KeyError, TypeError):
        return f"a damaged {SUMMARY}"
    return None


def _why_again(plan: Plan, planned: list[str], unchanged: set[str]) -> Optional[str]:
    """Why `out` cannot be reused; none if it can."""
    damage = _damage(plan.out)
    if damage is not None:
        return damage
    summary = json.loads((plan.out / SUMMARY).read_text())
    changed = [key for key, value in plan.request.items() if summary.get(key) != value]
    if changed:
        return f"another {', '.join(changed)} than then"
    parts = plan.out / PARTS
    if not parts.is_dir() or sorted(os.listdir(parts)) != sorted(planned):
        return "class folders came or went"
    if len(unchanged) < len(planned):
        return f"files of {len(planned) - len(unchanged)} of {len(planned)} parts changed"
    return None


def _gather_parts(plan: Plan, planned: list[str], unchanged: set[str]) -> None:
    """Make the working directory hold the planned parts and no others."""
    working = plan.working / PARTS
    working.mkdir(parents=True, exist_ok=True)
    for name in set(os.listdir(working)) - set(planned):
        (working / name).unlink()
    for name in unchanged:
        _link(plan.out / PARTS / name, working / name)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _replace(out: Path, working: Path) -> None:
    """Make the working directory the result. Killed in between, the next call finds all parts in `working`."""
    replaced = out.with_name(f"{working.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        out.rename(replaced)
    working.rename(out)
    fsync(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _log_summary(result: Validation, summary: dict[str, Any]) -> None:
    classes = f"{len(result.classes)} classes"
    logger.info("%s: %d + %d usable images of %s", result.root, result.train, result.val, classes)
    for status, count in result.faults.items():
        verb = "kept" if status == "converted" or outcome([status], result.policy).kept else "excluded"
        logger.warning(
            "%s: %d files are %s (%s); see %s", result.root, count, status, verb, result.directory / MANIFEST
        )
    for row in summary["excluded"][:10]:
        logger.warning("excluded %s: %s, %s", row["path"], row["status"], row["reason"])
    if summary["outside"]:
        logger.info(
            "%s: not part of the data set, beside train/ and val/: %s", result.root, ", ".join(summary["outside"])
        )
