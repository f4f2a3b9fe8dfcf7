"""Unpack tar archives into ImageNet-style folders: root/train/<class>/** and root/val/<class>/**.

`placement` says which layouts are known. Each archive is written to a folder of its own below root/.unpack. When all
archives of the call are written and checked, their class folders move to the root, and root/unpack.json records them.
If a call is killed, the next one keeps the inner tars that are finished, and writes other archives again.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
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
from datasets.base.files import PathLike, StageResult, fsync, write_json
from datasets.base.lock import exclusive
from datasets.base.parallel import in_processes
from datasets.layout import MARKERS
from datasets.unpacking.archive import BLOCK
from datasets.unpacking.class_folders import (
    DONE,
    IMAGES,
    WRITING,
    ArchivePart,
    class_files,
    flush,
    move_folders,
    write_part,
)
from datasets.unpacking.devkit import is_devkit, read_devkit
from datasets.unpacking.placement import Placement, Survey, survey

logger = logging.getLogger(__name__)

VERSION = 2  # raise it when the same archive may give other files
MARKER = MARKERS["unpack"]  # in the root: what each archive gave
WORK = ".unpack"  # in the root, while it is filled
FINISHED = "finished.json"  # in a work folder: the archive's entry of MARKER, once all of it is in DONE
_REPORT_SECONDS = 30

Entry = dict[str, Any]  # of MARKER: identity, md5, kind, folders {"train/<class>": files}, left_out


class Unpacked(StageResult):
    """What the archives of a call contain: images in `train` and `val`, class folders, and files that were left out."""

    root: Path
    train: int
    val: int
    classes: int
    left_out: int


class _Source(NamedTuple):
    """An archive that is to be unpacked."""

    path: Path
    identity: dict[str, Any]  # changes if the archive does, or what becomes of it
    survey: Survey
    work: Path


def unpack_archives(
    tars: Sequence[PathLike], out: PathLike, *, check_md5: bool = True, workers: Optional[int] = None
) -> Unpacked:
    """Unpack archives of images into out/train and out/val, in several processes, without a copy of inner tars.

    An archive that an earlier call has unpacked is not read again if its size and mtime are the same and its class
    folders have as many files as then. No class folder in `out` is ever replaced; missing ones are unpacked again. The
    md5 of an archive with a published name
    (`datasets.imagenet.MD5`) is computed at the same time and recorded.

    Args:
        tars: archives of images; with the validation images also the devkit of ILSVRC 2012.
        out: the root.
        check_md5: compare archives with a published name with the published md5.
        workers: processes; default: one per core.

    Raises:
        InputError: an archive is missing, damaged, unsafe or of an unknown layout, has not its published md5, has a
            class that another one or `out` has too, or the disk is full. In these cases `out`
            has nothing of the archives that this call should unpack.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and not out.is_dir():
        raise InputError(out, expected="a folder", found="a file", todo="choose another output folder")
    new = not out.exists()
    with exclusive(out):
        try:
            entries, sources = _plan([Path(os.path.abspath(tar)) for tar in tars], out, check_md5)
            _remove_old_work([*entries, *(source.path.name for source in sources)], sources, out)
            if sources:
                with _work_folders(sources, out):
                    entries.update(_unpack(sources, out, check_md5, workers))
        except InputError:
            if new:
                _remove_empty(out)
            raise
    totals: dict[str, int] = Counter()
    for entry in entries.values():
        for folder, files in entry["folders"].items():
            totals[folder.split("/")[0]] += files
        totals["classes"] += len(entry["folders"])
        totals["left_out"] += entry["left_out"]
    counts = {name: totals[name] for name in ("train", "val", "classes", "left_out")}
    logger.info("%s: %d + %d images in %d class folders", out, counts["train"], counts["val"], counts["classes"])
    return Unpacked(root=out, reused=not sources, **counts)


def _plan(paths: list[Path], out: Path, check_md5: bool) -> tuple[dict[str, Entry], list[_Source]]:
    """Return the entries of archives that `out` has already, and the archives that are to be unpacked."""
    names = Counter(path.name for path in paths)
    if names and max(names.values()) > 1:
        found = f"{max(names, key=lambda name: names[name])} twice"
        raise InputError("archives", expected="each name once", found=found, todo="correct the list")
    val_synsets = None
    for path in filter(is_devkit, paths):
        val_synsets = read_devkit(path).val_synsets
        if check_md5 and path.name in imagenet.MD5:
            _check_md5(path, threading.Event())
    recorded = _recorded(out)
    kept: dict[str, Entry] = {}
    sources: list[_Source] = []
    owners: dict[str, str] = {}
    for path in paths:
        if is_devkit(path):
            continue
        identity = _identity(path, val_synsets)
        entry = recorded.get(path.name, {})
        ours = entry["folders"] if entry.get("identity") == identity else {}
        needs_md5 = check_md5 and path.name in imagenet.MD5
        if ours and not (needs_md5 and entry["md5"] is None) and ours == {f: class_files(out / f) for f in ours}:
            kept[path.name] = entry
            folders = set(ours)
        else:
            headers = survey(path, val_synsets)
            folders = headers.folders
            work = out / WORK / f"{path.name}-{value_digest([identity, needs_md5])}"
            if not (work / FINISHED).exists():
                _check_class_folders(path, folders, ours, out)
            sources.append(_Source(path, identity, headers, work))
            if headers.left_out:
                logger.warning("%s: %d files outside of class folders are left out", path, headers.left_out)
        for folder in sorted(folders):
            if owners.setdefault(folder, path.name) != path.name:
                where, other = f"{path}: {folder}", f"it in {owners[folder]} too"
                todo = "unpack one of them elsewhere"
                raise InputError(where, expected="each class in one archive", found=other, todo=todo)
    if not owners:
        todo = "name the tars of the training and validation images"
        raise InputError("archives", expected="at least one of images", found="none", todo=todo)
    return kept, sources


def _identity(path: Path, val_synsets: Optional[tuple[str, ...]]) -> dict[str, Any]:
    try:
        status = path.stat()
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(path, expected="a tar archive", found=found, todo="correct the path") from None
    stamp = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    return {**stamp, "devkit": value_digest(val_synsets), "version": VERSION}


def _check_class_folders(path: Path, folders: set[str], ours: dict[str, int], out: Path) -> None:
    """Check that no class folder of an archive exists, or that it has as many files as an earlier call recorded."""
    for folder in sorted(folders):
        found = class_files(out / folder)
        if (out / folder).exists() and found != ours.get(folder):
            expected = f"the {ours[folder]:,} files of {path.name}" if folder in ours else f"none before {path.name}"
            todo = "move this folder away and unpack again, or unpack into another root"
            raise InputError(out / folder, expected=expected, found=f"a folder of {found:,} files", todo=todo)


@contextmanager
def _work_folders(sources: list[_Source], out: Path) -> Iterator[None]:
    """Create the folders to work in, without what killed processes left unfinished.

    They are removed if the input is at fault, and stay for the next call after any other error.
    """
    try:
        with room_for(IMAGES, out):
            for source in sources:
                with exclusive(source.work):  # processes of a killed call live on for half a second and hold it
                    shutil.rmtree(source.work / WRITING, ignore_errors=True)
            yield
    except InputError:
        for source in sources:
            _remove(source.work)
        _remove_empty(out / WORK)
        raise


def _unpack(sources: list[_Source], out: Path, check_md5: bool, workers: Optional[int]) -> dict[str, Entry]:
    """Unpack archives, move their class folders to the root and record them; return their entries."""
    unfinished = [source for source in sources if not (source.work / FINISHED).exists()]
    _check_free(unfinished, out)
    md5s = _extract(unfinished, out, check_md5, workers)
    for source in unfinished:
        done = source.work / DONE
        folders = {folder: class_files(done / folder) or class_files(out / folder) for folder in source.survey.folders}
        entry = {
            "identity": source.identity,
            "md5": md5s.get(source.path.name),
            "kind": source.survey.placement.kind,
            "folders": dict(sorted(folders.items())),
            "left_out": source.survey.left_out,
        }
        write_json(source.work / FINISHED, entry)
    entries = {source.path.name: json.loads((source.work / FINISHED).read_text()) for source in sources}
    for source in sources:
        for split in sorted((source.work / DONE).glob("*")):
            if not (out / split.name).exists():
                os.rename(split, out / split.name)
        move_folders(source.work / DONE, out)
    flush(out)
    archives = {**_recorded(out), **entries}
    marker = sources[0].work / MARKER  # a killed write leaves nothing in the root
    write_json(marker, {"version": VERSION, "archives": dict(sorted(archives.items()))})
    os.replace(marker, out / MARKER)
    fsync(out)
    for source in sources:
        shutil.rmtree(source.work)
    _remove_empty(out / WORK)
    return entries


def _check_free(sources: list[_Source], out: Path) -> None:
    """Check that the disk has room for the archives that no call has begun to unpack."""
    needed = sum(source.survey.bytes for source in sources if not (source.work / DONE).exists())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise no_room(f"{needed / 1e9:,.3f} GB of images", out, f"{free / 1e9:,.3f} GB free")


def _extract(sources: list[_Source], out: Path, check_md5: bool, workers: Optional[int]) -> dict[str, str]:
    """Fill the work folders, and return the md5 of the archives with a published name."""
    parts = [part for source in sources for part in _parts(source, out)]
    stop = threading.Event()
    last, size = time.monotonic(), 0
    with ThreadPoolExecutor(1) as pool:
        published = [source.path for source in sources if check_md5 and source.path.name in imagenet.MD5]
        sums = {path.name: pool.submit(_check_md5, path, stop) for path in published}
        try:
            with closing(in_processes(write_part, parts, workers=workers)) as results:  # type: ignore[type-var]
                for done, written in enumerate(results, 1):
                    size += written
                    for each in sums.values():
                        if each.done():
                            each.result()
                    if time.monotonic() - last > _REPORT_SECONDS:
                        last = time.monotonic()
                        logger.info("%s: %d of %d parts, %.1f GB", out, done, len(parts), size / 1e9)
            return {name: each.result() for name, each in sums.items()}
        finally:
            stop.set()


def _parts(source: _Source, out: Path) -> Iterator[ArchivePart]:
    if not source.survey.inner:
        yield ArchivePart(source.path, None, source.survey.placement, out, source.work)
    for inner in source.survey.inner:
        if not (out / "train" / inner.class_name).exists():
            yield ArchivePart(source.path, inner, Placement("tars", inner_class=inner.class_name), out, source.work)


def _recorded(out: Path) -> dict[str, Entry]:
    """Return the entries of unpack.json by archive; none if it is missing, damaged or of another version."""
    try:
        content = json.loads((out / MARKER).read_text())
        return dict(content["archives"]) if content["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _check_md5(path: Path, stop: threading.Event) -> str:
    """Return the md5 of an archive with a published name, or "" if `stop` was set meanwhile.

    Raises:
        InputError: it is not the published one.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            if stop.is_set():
                return ""
            digest.update(block)
    if digest.hexdigest() != imagenet.MD5[path.name]:
        raise InputError(
            path,
            expected=f"the published archive, md5 {imagenet.MD5[path.name]}",
            found=f"md5 {digest.hexdigest()}",
            todo="download it again; if it is meant to be another archive, rename it or pass --skip-md5",
        )
    return digest.hexdigest()


def _remove_old_work(names: list[str], sources: list[_Source], out: Path) -> None:
    """Remove the work folders that killed calls have left of archives with these names, except those of `sources`."""
    for name in names:
        for work in (out / WORK).glob(f"{glob.escape(name)}-{'[0-9a-f]' * 12}"):
            if work not in [source.work for source in sources]:
                _remove(work)
    _remove_empty(out / WORK)


def _remove(work: Path) -> None:
    """Remove a work folder, after all processes have left it."""
    if work.exists():
        with exclusive(work):
            shutil.rmtree(work, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
