"""Tar archives to ImageNet-style folders: root/train/<class>/** and root/val/<class>/**.

`placement` says which archives are known and what becomes of them. Work goes on below root/.unpack, a folder
per archive; class folders move to the root when all archives of the call are unpacked and found good. A killed run
leaves that folder, and the same call goes on from the classes that are complete in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Optional

from datasets import imagenet
from datasets.base.digests import value_digest
from datasets.base.errors import InputError, no_room, room_for
from datasets.base.files import PathLike, StageResult, write_json
from datasets.base.lock import exclusive
from datasets.base.parallel import in_processes
from datasets.layout import MARKERS
from datasets.unpacking.archive import BLOCK
from datasets.unpacking.class_folders import DONE, IMAGES, WRITING, Unit, Written, flush, replace, write
from datasets.unpacking.devkit import is_devkit, read_devkit
from datasets.unpacking.placement import Parts, Placement, Survey, survey

logger = logging.getLogger(__name__)

VERSION = 1  # raise it when the same archive may give other files
MARKER = MARKERS["unpack"]  # in the root: which archives it came from
WORK = ".unpack"  # in the root, while it is filled
_REPORT_SECONDS = 30


class Unpacked(StageResult):
    """What the archives of one call gave: images in `train` and `val`, the number of class folders, files left out."""

    root: Path
    train: int
    val: int
    classes: int
    left_out: int


class _Source(NamedTuple):
    """One archive of the call."""

    path: Path
    identity: dict[str, Any]  # of the file: another one under the same name is another archive
    survey: Survey
    work: Path


def unpack(
    tars: Sequence[PathLike], out: PathLike, *, check_md5: bool = True, workers: Optional[int] = None
) -> Unpacked:
    """Unpack archives of images into out/train and out/val, by several processes, without a copy of inner tars.

    Folders of other archives in `out` stay. What is there already and equal by names and sizes to the archives'
    headers is kept, what an earlier call wrote and is damaged now is written again. An archive with a published name
    (`datasets.imagenet.MD5`) is read a second time for its md5, meanwhile; the result is remembered.

    Args:
        tars: archives of images, and the devkit of ILSVRC 2012 beside its validation images.
        check_md5: false takes archives with a published name as they are.
        workers: processes; default: one per core.

    Raises:
        InputError: an archive is missing, damaged, unsafe or of an unknown kind, has not its published md5, gives a
            class that another one gives too, would overwrite somebody's files, or the disk is full. Nothing of the
            call's archives is then in `out`.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and not out.is_dir():
        raise InputError(out, expected="a folder", found="a file", todo="choose another output folder")
    new = not out.exists()
    sources = _plan([Path(os.path.abspath(tar)) for tar in tars], out, check_md5)
    with exclusive(out), _work_folders(sources, out, new):
        _check_room(sources, out)
        written = _extract(sources, out, check_md5, workers)
        changed = _publish(sources, out)
        result = _record(sources, out, written, changed)
        for source in sources:
            shutil.rmtree(source.work)
        _remove_empty(out / WORK)
    logger.info("%s: %d + %d images in %d class folders", out, result.train, result.val, result.classes)
    return result


def _plan(paths: list[Path], out: Path, check_md5: bool) -> list[_Source]:
    names = Counter(path.name for path in paths)
    if names and max(names.values()) > 1:
        found = f"{max(names, key=lambda name: names[name])} twice"
        raise InputError("archives", expected="each name once", found=found, todo="correct the list")
    val_synsets = None
    for path in filter(is_devkit, paths):
        val_synsets = read_devkit(path).val_synsets
        if check_md5 and path.name in imagenet.MD5:
            _check_md5(path, _file_md5(path, threading.Event()))
    sources: list[_Source] = []
    owners: dict[Parts, str] = {}
    for path in paths:
        if is_devkit(path):
            continue
        headers = survey(path, val_synsets)
        for folder in headers.folders:
            if owners.setdefault(folder, path.name) != path.name:
                where, other = f"{path}: {'/'.join(folder)}", f"it in {owners[folder]} too"
                todo = "unpack one of them elsewhere"
                raise InputError(where, expected="each class in one archive", found=other, todo=todo)
        if headers.left_out:
            logger.warning("%s: %d files beside the class folders are left out", path, headers.left_out)
        status = path.stat()
        identity = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
        digest = value_digest([identity, headers.placement, VERSION])
        sources.append(_Source(path, identity, headers, out / WORK / f"{path.name}-{digest}"))
    if not sources:
        todo = "name the tars of the training and validation images"
        raise InputError("archives", expected="at least one of images", found="none", todo=todo)
    return sources


@contextmanager
def _work_folders(sources: list[_Source], out: Path, new: bool) -> Iterator[None]:
    """The folders to work in, free of what killed processes left half done.

    They are removed where the input is at fault, and stay for the next attempt where anything else happened.
    """
    try:
        with room_for(IMAGES, out):
            for source in sources:
                same_name = re.compile(re.escape(source.path.name) + "-[0-9a-f]{12}")
                for other in (out / WORK).glob("*"):
                    if same_name.fullmatch(other.name) and other != source.work:
                        _remove(other)
                with exclusive(source.work):  # processes of a killed run live on for a second and hold it
                    shutil.rmtree(source.work / WRITING, ignore_errors=True)
            yield
    except InputError:
        for source in sources:
            _remove(source.work)
        _remove_empty(out / WORK)
        if new:
            _remove_empty(out)
        raise


def _check_room(sources: list[_Source], out: Path) -> None:
    """Raise InputError where the images of archives that nobody has begun to unpack cannot fit on the disk."""
    begun = [
        source
        for source in sources
        if (source.work / DONE).exists() or any(out.joinpath(*folder).exists() for folder in source.survey.folders)
    ]
    needed = sum(source.survey.bytes for source in sources if source not in begun)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise no_room(f"{needed / 1e9:,.3f} GB of images", out, f"{free / 1e9:,.3f} GB free")


def _extract(sources: list[_Source], out: Path, check_md5: bool, workers: Optional[int]) -> list[list[Written]]:
    """Fill the work folders; what each archive's units have written."""
    recorded = _recorded(out)
    units = [(n, unit) for n, source in enumerate(sources) for unit in _units(source, out, recorded)]
    written: list[list[Written]] = [[] for _ in sources]
    stop = threading.Event()
    last = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        summed = [source for source in sources if check_md5 and source.path.name in imagenet.MD5]
        sums = [pool.submit(_md5, source, recorded, stop) for source in summed]
        try:
            with closing(in_processes(write, (unit for _, unit in units), workers=workers)) as results:  # type: ignore[type-var]
                for done, ((n, _), result) in enumerate(zip(units, results), 1):
                    written[n].append(result)
                    for each in sums:
                        if each.done():
                            each.result()
                    if time.monotonic() - last > _REPORT_SECONDS:
                        last = time.monotonic()
                        total = sum(each.bytes for several in written for each in several)
                        logger.info("%s: %d of %d parts, %.1f GB", out, done, len(units), total / 1e9)
            for each in sums:
                each.result()
        finally:
            stop.set()
    return written


def _units(source: _Source, out: Path, recorded: dict[str, dict[str, Any]]) -> Iterator[Unit]:
    ours = source.path.name in recorded
    unit = Unit(source.path, None, source.survey.placement, list(source.survey.folders), out, source.work, ours)
    if not source.survey.inner:
        yield unit
    for inner in source.survey.inner:
        placement = Placement("files", (), inner.folder)
        yield unit._replace(inner=inner, placement=placement, folders=[inner.folder])


def _publish(sources: list[_Source], out: Path) -> bool:
    """Move complete class folders to the root, a whole split where there is none yet; whether there were any."""
    changed = False
    for source in sources:
        for split in sorted((source.work / DONE).glob("*")):
            changed = True
            if not (out / split.name).exists():
                os.rename(split, out / split.name)
                continue
            for folder in sorted(split.iterdir()):
                replace(folder, out / split.name / folder.name, source.work)
    flush(out)
    return changed


def _record(sources: list[_Source], out: Path, written: list[list[Written]], changed: bool) -> Unpacked:
    """Add to the root's list of archives."""
    archives = _recorded(out)
    totals: dict[str, int] = Counter()
    for source, parts in zip(sources, written):
        counts = {split: sum(part.images.get(split, 0) for part in parts) for split in ("train", "val")}
        counts.update({"classes": len(source.survey.folders), "left_out": source.survey.left_out})
        md5 = _known_md5(source, archives)
        archives[source.path.name] = {**source.identity, "md5": md5, "kind": source.survey.placement.kind, **counts}
        for key, count in counts.items():
            totals[key] += count
    if archives != _recorded(out):
        write_json(out / MARKER, {"version": VERSION, "archives": dict(sorted(archives.items()))})
    reused = not changed and all(part.kept for parts in written for part in parts)
    return Unpacked(root=out, reused=reused, **totals)


def _recorded(out: Path) -> dict[str, dict[str, Any]]:
    """What unpack.json says of each archive; nothing where it is missing or damaged."""
    try:
        return dict(json.loads((out / MARKER).read_text())["archives"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _md5(source: _Source, recorded: dict[str, dict[str, Any]], stop: threading.Event) -> None:
    """Check an archive's published md5, and remember it: a repeated call does not read the archive again."""
    md5 = _known_md5(source, recorded)
    if md5 is None:
        md5 = _file_md5(source.path, stop)
        if stop.is_set():
            return
        write_json(source.work / "md5.json", md5)
    _check_md5(source.path, md5)


def _known_md5(source: _Source, recorded: dict[str, dict[str, Any]]) -> Optional[str]:
    """The md5 of the archive if it was summed since it was last changed."""
    try:
        return str(json.loads((source.work / "md5.json").read_text()))
    except (OSError, ValueError):
        entry = recorded.get(source.path.name, {})
        return entry.get("md5") if entry.items() >= source.identity.items() else None


def _file_md5(path: Path, stop: threading.Event) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb", buffering=0) as file:
        while not stop.is_set() and (block := file.read(BLOCK)):
            digest.update(block)
    return digest.hexdigest()


def _check_md5(path: Path, md5: str) -> None:
    if md5 != imagenet.MD5[path.name]:
        raise InputError(
            path,
            expected=f"the published archive, md5 {imagenet.MD5[path.name]}",
            found=f"md5 {md5}",
            todo="download it again; if it is meant to be another archive, rename it or pass --skip-md5",
        )


def _remove(work: Path) -> None:
    """Remove a work folder when no process works in it any more."""
    if work.exists():
        with exclusive(work):
            shutil.rmtree(work, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
