"""Validate a folder of images: decode every file, give each a row in the manifest, total them in validation.json."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from datasets.image import MAGIC_BYTES, MAX_BYTES, Inspection, inspect, sniff, suffix_fault
from datasets.layout import NO_CLASS, FileEntry, is_hidden, outside, scan
from datasets.manifest import MANIFEST, USABLE, ManifestRow, fault_counts, mark_copies, write_manifest
from datasets.stage import (
    InputError,
    PathLike,
    StageResult,
    atomic_directory,
    file_digest,
    refuse_foreign,
    value_digest,
    write_json,
)

logger = logging.getLogger(__name__)

VERSION = 2  # raise it when the same file may get another row: finished validations are then repeated
SUMMARY = "validation.json"
_CHUNK = 64  # files a work unit: keeps the executor's own cost per file low


class Validation(StageResult):
    """A validated data set. `train` and `val` count usable images, `faults` the rows of each status but ok."""

    directory: Path
    root: Path
    name: str
    manifest_digest: str
    train: int
    val: int
    classes: list[str]
    faults: dict[str, int]


def validation_directory(
    workspace: PathLike, root: PathLike, *, name: str | None = None, val_share: float = 0.1
) -> Path:
    """Where the pipeline validates `root`: named by the listing of its files and by the options."""
    request = _request(Path(root), scan(root, val_share=val_share), name, val_share)
    return Path(workspace) / "datasets" / f"{request['name']}-{value_digest(request)}"


def validate(
    root: PathLike, out: PathLike, *, val_share: float = 0.1, name: str | None = None, workers: int | None = None
) -> Validation:
    """Decode every file under `root` to its end and write manifest.parquet and validation.json to `out`.

    The layouts are those of `datasets.layout.scan`. The same tree gives the same bytes of manifest.parquet. A finished
    `out` is reused if every file still has the path, size and mtime it had and the manifest is unchanged.
    `workers` threads decode (Pillow releases the interpreter while it does); default: one per core.

    Raises:
        InputError: the layout is at fault, a class has no usable training image, val has no usable image,
            or `out` holds something else.
    """
    root, out = Path(root), Path(out)
    entries = scan(root, val_share=val_share)
    request = _request(root, entries, name, val_share)
    refuse_foreign(out, SUMMARY)
    fault = _fault(out, request)
    if fault is None:
        logger.info("%s: reusing the validation of %s", out, root)
        return load_validation(out).model_copy(update={"reused": True})
    if out.exists():
        logger.warning("%s: validating again: %s", out, fault)
    classes = sorted({entry.class_name for entry in entries if entry.split == "train"} - {NO_CLASS})
    rows = mark_copies(_examine_all(root, entries, classes, workers or len(os.sched_getaffinity(0))))
    _require_usable(root, rows, classes)
    rows = [row._replace(kept=row.status in USABLE) for row in rows]
    with atomic_directory(out) as partial:
        write_manifest(partial / MANIFEST, rows)
        summary = {**request, **_totals(rows), "classes": classes, "outside": outside(root)}
        write_json(partial / SUMMARY, {**summary, "manifest_digest": file_digest(partial / MANIFEST)})
    result = load_validation(out)
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
    return Validation(
        directory=directory,
        root=Path(summary["root"]),
        **{key: summary[key] for key in ("name", "manifest_digest", "train", "val", "classes", "faults")},
    )


def _request(root: Path, entries: list[FileEntry], name: str | None, val_share: float) -> dict[str, Any]:
    """Everything that the result depends on."""
    root = root.resolve()
    listing = hashlib.sha256()
    for entry in entries:
        listing.update(os.fsencode(f"{entry.path}\0{entry.bytes}\0{entry.mtime_ns}\0"))
    safe_name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name or root.name).strip("-.") or "images"
    return {
        "name": safe_name,
        "root": str(root),
        "val_share": val_share,
        "listing": listing.hexdigest(),
        "version": VERSION,
    }


def _damage(out: Path) -> str | None:
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


def _fault(out: Path, request: dict[str, Any]) -> str | None:
    """Why `out` cannot be reused for this request; none if it can."""
    damage = _damage(out)
    if damage is not None:
        return damage
    summary = json.loads((out / SUMMARY).read_text())
    changed = [key for key, value in request.items() if summary.get(key) != value]
    return f"another {', '.join(changed)} than then" if changed else None


def _examine_all(root: Path, entries: list[FileEntry], classes: list[str], workers: int) -> list[ManifestRow]:
    labels = {class_name: label for label, class_name in enumerate(classes)}

    def examine_chunk(start: int) -> list[ManifestRow]:
        return [_examine(root, entry, labels) for entry in entries[start : start + _CHUNK]]

    Image.init()  # registers the formats once, before threads would do it at the same time
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # broken EXIF and the like; the pixels are judged by decoding them
        return [row for rows in pool.map(examine_chunk, range(0, len(entries), _CHUNK)) for row in rows]


def _examine(root: Path, entry: FileEntry, labels: dict[str, int]) -> ManifestRow:
    found, size, digest = _inspect_file(root, entry)
    path = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
    if found.status in ("ok", "converted"):
        note = suffix_fault(path, found.format)
        found = found._replace(reason="; ".join(filter(None, (found.reason, note))))
        if entry.class_name == NO_CLASS:
            found = found._replace(status="no_class", reason="stands beside the class folders")
    return ManifestRow(
        path=path,
        split=entry.split,
        class_name=entry.class_name,
        label=labels.get(entry.class_name, -1),
        bytes=size,
        width=found.width,
        height=found.height,
        mode=found.mode,
        format=found.format,
        digest=digest,
        status=found.status,
        reason=found.reason,
    )


def _inspect_file(root: Path, entry: FileEntry) -> tuple[Inspection, int, str | None]:
    """The inspection of a file, its size in bytes and its digest. Of what is no image only the head is read."""
    if is_hidden(entry.path):
        return Inspection("not_image", "hidden file or folder"), entry.bytes, None
    try:
        entry.path.encode()
        path = os.path.join(root, entry.path)
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            return Inspection("unreadable", "no regular file"), 0, None
        with open(path, "rb") as file:
            data = file.read(MAGIC_BYTES)
            name = sniff(data)
            if name is not None and entry.bytes > MAX_BYTES:
                found = Inspection("too_large", f"more than {MAX_BYTES} bytes; not decoded", format=name)
                return found, entry.bytes, None
            if name is not None:
                data += file.read()
    except UnicodeEncodeError:
        return Inspection("unreadable", "the file name is not UTF-8"), entry.bytes, None
    except OSError as error:
        return Inspection("unreadable", error.strerror or type(error).__name__), entry.bytes, None
    if name is None:
        return inspect(data), entry.bytes, None
    return inspect(data), len(data), hashlib.sha256(data).hexdigest()


def _require_usable(root: Path, rows: list[ManifestRow], classes: list[str]) -> None:
    usable = {(row.split, row.class_name) for row in rows if row.status in USABLE}
    for class_name in classes:
        if ("train", class_name) not in usable:
            faulty = [row for row in rows if (row.split, row.class_name) == ("train", class_name)]
            causes = f"first {faulty[0].path}: {faulty[0].status}, {faulty[0].reason}" if faulty else "none at all"
            raise InputError(
                root,
                expected=f"a usable training image of class {class_name!r}",
                found=f"{len(faulty)} faulty files, {causes}",
                todo="repair the files or remove the class",
            )
    if not any(split == "val" for split, _ in usable):
        raise InputError(
            root,
            expected="a usable validation image",
            found="none",
            todo="add images to val/, or use classes of at least two images",
        )


def _totals(rows: list[ManifestRow]) -> dict[str, Any]:
    return {
        "files": len(rows),
        "bytes": sum(row.bytes for row in rows),
        "train": sum(row.split == "train" and row.status in USABLE for row in rows),
        "val": sum(row.split == "val" and row.status in USABLE for row in rows),
        "faults": fault_counts(row.status for row in rows),
        "excluded": list(_excluded(rows)),
    }


def _excluded(rows: list[ManifestRow]) -> Iterator[dict[str, str]]:
    for row in rows:
        if row.status not in USABLE:
            yield {"path": row.path, "status": row.status, "reason": row.reason}


def _log_summary(result: Validation, summary: dict[str, Any]) -> None:
    classes = f"{len(result.classes)} classes"
    logger.info("%s: %d + %d usable images of %s", result.root, result.train, result.val, classes)
    for status, count in result.faults.items():
        verb = "kept" if status in USABLE else "excluded"
        logger.warning(
            "%s: %d files are %s (%s); see %s", result.root, count, status, verb, result.directory / MANIFEST
        )
    for row in summary["excluded"][:10]:
        logger.warning("excluded %s: %s, %s", row["path"], row["status"], row["reason"])
    if summary["outside"]:
        logger.info(
            "%s: not part of the data set, beside train/ and val/: %s", result.root, ", ".join(summary["outside"])
        )
