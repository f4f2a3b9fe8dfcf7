"""Unpack tar archives into ImageNet-style folders: root/train/<class>/** and root/val/<class>/**.

`placement` says which layouts are known. The headers of all archives and the published md5 are checked first. Then one
archive after the other is written to a folder below root/.unpack, its class folders move to the root, and
root/unpack.json records it. If a call is killed, the next one keeps the archives and inner tars that are finished.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import logging
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

from datasets import imagenet
from datasets.base.digests import file_md5, value_digest
from datasets.base.errors import InputError, no_room, room_for
from datasets.base.files import PathLike, StageResult, fsync, write_json
from datasets.base.lock import exclusive, shared
from datasets.base.parallel import in_processes
from datasets.layout import MARKERS
from datasets.unpacking.archive import Archive, InnerTar, opened, refuse
from datasets.unpacking.devkit import is_devkit, read_devkit
from datasets.unpacking.placement import Placement, Survey, survey

logger = logging.getLogger(__name__)

VERSION = 2  # raise it when the same archive may give other files
MARKER = MARKERS["unpack"]  # in the root: what each archive gave
WORK = ".unpack"  # in the root, while it is filled: a work folder for each archive, with
WRITING = "writing"  # - class folders that are being written,
DONE = "done"  # - finished class folders, by split, and,
FINISHED = "finished.json"  # - once all of the archive is in DONE, its entry of MARKER
IMAGES = "all images of the archives"
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
    md5: Optional[str]  # the published one, if it is to be compared
    survey: Survey
    work: Path


def unpack_archives(
    tars: Sequence[PathLike], out: PathLike, *, check_md5: bool = True, workers: Optional[int] = None
) -> Unpacked:
    """Unpack archives of images into out/train and out/val, in several processes, without a copy of inner tars.

    An archive that an earlier call has unpacked is not read again if its size and mtime are the same and its class
    folders have as many files as then. No class folder in `out` is ever replaced; missing ones are unpacked again.

    Args:
        tars: archives of images; with the validation images also the devkit of ILSVRC 2012.
        out: the root.
        check_md5: compare archives with a published name (`datasets.imagenet.MD5`) with the published md5.
        workers: processes; default: one per core.

    Raises:
        InputError: an archive is missing, damaged, unsafe or of an unknown layout, has not its published md5, has a
            class that another one or `out` has too, or the disk is full. `out` has nothing of this archive then.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and not out.is_dir():
        raise InputError(out, expected="a folder", found="a file", todo="choose another output folder")
    new = not out.exists()
    with exclusive(out):
        try:
            entries, sources = _plan([Path(os.path.abspath(tar)) for tar in tars], out, check_md5)
            for name in [*entries, *(source.path.name for source in sources)]:
                for work in (out / WORK).glob(f"{glob.escape(name)}-{'[0-9a-f]' * 12}"):
                    if work not in [source.work for source in sources]:
                        _remove(work)  # left by a killed call; the archive has changed since
            _check_free(sources, out)
            for source in sources:
                if source.md5 is not None and not source.work.exists():
                    _check_md5(source.path)
            entries |= {source.path.name: _unpack(source, out, workers) for source in sources}
        finally:
            _remove_empty(out / WORK)
            if new:
                _remove_empty(out)
    folders = {folder: files for entry in entries.values() for folder, files in entry["folders"].items()}
    counts = {split: sum(n for f, n in folders.items() if f.startswith(f"{split}/")) for split in ("train", "val")}
    left_out = sum(entry["left_out"] for entry in entries.values())
    logger.info("%s: %d + %d images in %d class folders", out, counts["train"], counts["val"], len(folders))
    return Unpacked(root=out, classes=len(folders), left_out=left_out, reused=not sources, **counts)


def _plan(paths: list[Path], out: Path, check_md5: bool) -> tuple[dict[str, Entry], list[_Source]]:
    """Return the entries of archives that `out` has already, and the archives that are to be unpacked."""
    names = Counter(path.name for path in paths)
    if names and max(names.values()) > 1:
        found = f"{max(names, key=lambda name: names[name])} twice"
        raise InputError("archives", expected="each name once", found=found, todo="correct the list")
    val_synsets = None
    for path in filter(is_devkit, paths):
        val_synsets = read_devkit(path)
        if check_md5 and path.name in imagenet.MD5:
            _check_md5(path)
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
        md5 = imagenet.MD5.get(path.name) if check_md5 else None
        if ours and (md5 is None or entry["md5"]) and ours == {f: class_files(out / f) for f in ours}:
            kept[path.name] = entry
            folders = set(ours)
        else:
            headers = survey(path, val_synsets)
            folders = headers.folders
            work = out / WORK / f"{path.name}-{value_digest([identity, md5 is not None])}"
            if not (work / FINISHED).exists():
                _check_class_folders(path, folders, ours, out)
            sources.append(_Source(path, identity, md5, headers, work))
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


def _check_free(sources: list[_Source], out: Path) -> None:
    """Check that the disk has room for the archives that no call has begun to unpack."""
    needed = sum(source.survey.bytes for source in sources if not (source.work / DONE).exists())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise no_room(f"{needed / 1e9:,.3f} GB of images", out, f"{free / 1e9:,.3f} GB free")


def _check_md5(path: Path) -> None:
    md5 = file_md5(path)
    if md5 != imagenet.MD5[path.name]:
        raise InputError(
            path,
            expected=f"the published archive, md5 {imagenet.MD5[path.name]}",
            found=f"md5 {md5}",
            todo="download it again; if it is meant to be another archive, rename it or pass --skip-md5",
        )


def _unpack(source: _Source, out: Path, workers: Optional[int]) -> Entry:
    """Unpack an archive, move its class folders to the root and record it; return its entry.

    The work folder is removed if the input is at fault, and stays for the next call after any other error.
    """
    work, headers = source.work, source.survey
    try:
        with room_for(IMAGES, out):
            with exclusive(work):  # processes of a killed call live on for half a second and hold it
                shutil.rmtree(work / WRITING, ignore_errors=True)
            if not (work / FINISHED).exists():
                _extract(source, out, workers)
                folders = {f: class_files(work / DONE / f) or class_files(out / f) for f in sorted(headers.folders)}
                kind, left_out = headers.placement.kind, headers.left_out
                identity = {"identity": source.identity, "md5": source.md5}
                write_json(work / FINISHED, {**identity, "kind": kind, "folders": folders, "left_out": left_out})
            entry: Entry = json.loads((work / FINISHED).read_text())
            _move_folders(work / DONE, out)
            _flush(out)
            archives = {**_recorded(out), source.path.name: entry}
            marker = work / MARKER  # a killed write leaves nothing in the root
            write_json(marker, {"version": VERSION, "archives": dict(sorted(archives.items()))})
            os.replace(marker, out / MARKER)
            fsync(out)
            shutil.rmtree(work)
            return entry
    except InputError:
        _remove(work)
        raise


def _extract(source: _Source, out: Path, workers: Optional[int]) -> None:
    """Fill DONE with the class folders that neither it nor the root has."""
    inner = [each for each in source.survey.inner if not (out / "train" / each.class_name).exists()]
    parts: list[Optional[InnerTar]] = [*inner] if source.survey.inner else [None]
    last, size = time.monotonic(), 0
    write = partial(_write_part, source.path, source.survey.placement, source.work)
    for done, written in enumerate(in_processes(write, parts, workers=workers), 1):
        size += written
        if time.monotonic() - last > _REPORT_SECONDS:
            last = time.monotonic()
            logger.info("%s: %d of %d parts, %.1f GB", out, done, len(parts), size / 1e9)


def _write_part(path: Path, placement: Placement, work: Path, inner: Optional[InnerTar]) -> int:
    """Write the class folders of an inner tar, or of a whole archive, to DONE, and return the bytes written.

    An inner tar whose folder is there is not read. A whole archive replaces what a killed call has left.
    """
    with shared(work):
        if inner is None:
            shutil.rmtree(work / DONE, ignore_errors=True)
        elif (work / DONE / "train" / inner.class_name).exists():
            return 0
        else:
            placement = placement._replace(inner_class=inner.class_name)
        attempt = work / WRITING / uuid.uuid4().hex
        try:
            with opened(path, inner) as archive:
                size = _fill(archive, placement, attempt)
            _flush(attempt)
            _move_folders(attempt, work / DONE)
            return size
        finally:
            shutil.rmtree(attempt, ignore_errors=True)


def _fill(archive: Archive, placement: Placement, attempt: Path) -> int:
    size = files = 0
    made: set[Path] = set()
    for member in archive.members():
        target = placement(member.parts)
        if target is None:
            continue
        path = attempt.joinpath(*target)
        try:
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            with open(path, "xb") as file:
                for block in archive.content(member):
                    file.write(block)
        except (FileExistsError, NotADirectoryError):
            refuse(archive.where, f"{'/'.join(member.parts)!r} twice")
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            refuse(archive.where, f"a name of more than 255 bytes, {'/'.join(member.parts)!r}")
        files += 1
        size += member.size
    if not files:
        raise InputError(archive.where, expected="images", found="no file in it", todo="download or pack it again")
    return size


def _move_folders(source: Path, target: Path) -> None:
    """Move the class folders below `source`, a folder of splits, to `target`; those that `target` has stay there."""
    for folder in sorted(source.glob("*/*")):
        moved = target / folder.relative_to(source)
        if not moved.exists():
            moved.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(folder, moved)
            except OSError:
                if not moved.is_dir():  # else a worker of a killed call, which lives on for a moment, was faster
                    raise


def class_files(folder: Path) -> int:
    """Return the number of files in a class folder and below; 0 if it is missing."""
    return sum(len(names) for _, _, names in os.walk(folder))


def _flush(folder: Path) -> None:
    """Wait until the disk holds everything that was written to the folder's file system.

    One call is faster than an fsync of each file: 0.08 s instead of 0.27 s for a class of 1,300.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(descriptor)


def _recorded(out: Path) -> dict[str, Entry]:
    """Return the entries of unpack.json by archive; none if it is missing, damaged or of another version."""
    try:
        content = json.loads((out / MARKER).read_text())
        return dict(content["archives"]) if content["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remove(work: Path) -> None:
    """Remove a work folder, after all processes have left it."""
    if work.exists():
        with exclusive(work):
            shutil.rmtree(work, ignore_errors=True)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
