"""The units of a validation's work: list folders, examine their files, write what was found as parts.

A part is a Parquet file with a row for every file of a class folder (of a large one: of a range of it), as it was found
and without what only the whole data set shows: labels, copies, and what the policy makes of a fault. The rows of
earlier parts are taken over for files that still have the same path, size, mtime and inode.
"""

from __future__ import annotations

import hashlib
import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.base.digests import checksum
from datasets.base.errors import room_for
from datasets.base.files import atomic_write
from datasets.images.decoder import inspect_apart
from datasets.images.inspect import MAGIC_BYTES, MAX_BYTES, Inspection, sniff, suffix_fault
from datasets.layout import NO_CLASS, ClassFolder, is_held_out, is_hidden, list_files

VERSION = 5  # raise it when the same file may get another row: all files are then examined again
PARTS = "parts"
VALIDATION = "the validation"

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("split", pa.string()),
        ("class_name", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("digest", pa.binary(32)),
        ("checksum", pa.binary(16)),
        ("reason", pa.string()),
        ("faults", pa.string()),
        ("warnings", pa.string()),
        ("look", pa.uint64()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("inode", pa.uint64()),
    ]
)
_IDENTITY = ("path", "split", "size", "mtime_ns", "inode")


_Bytes = bytes  # PartRow has a column of this name


class PartRow(NamedTuple):
    """The columns of a part."""

    path: str
    split: str
    class_name: str
    bytes: int  # read
    width: Optional[int]
    height: Optional[int]
    mode: Optional[str]
    format: Optional[str]
    digest: Optional[_Bytes]
    checksum: Optional[_Bytes]
    reason: str
    faults: str  # sorted, with commas
    warnings: str  # of the decoder, with "; "
    look: Optional[int]
    size: int
    mtime_ns: int
    inode: int


class Part(NamedTuple):
    """A class folder, or the range `first` <= path < `end` of it where it has too many files for one part."""

    file: str  # name of the part
    folder: ClassFolder
    files: int  # when it was planned
    val_limit: Optional[bytes] = None  # of `datasets.layout.is_held_out`
    first: str = ""
    end: Optional[str] = None


class Unit(NamedTuple):
    """Parts that one process examines, one after the other."""

    root: Path
    working: Path  # receives the parts of files that changed
    finished: Path  # of an earlier validation, or nothing
    parts: list[Part]
    looks: bool = False  # whether to make perceptual hashes
    full: bool = False  # read every file again

    @property
    def files(self) -> int:
        return sum(part.files for part in self.parts)


class Examined(NamedTuple):
    """What became of a unit. The file of a part in `unchanged` is that of the finished validation."""

    files: int
    examined: int
    unchanged: list[str]


class File(NamedTuple):
    """A file of a part, as the folder shows it."""

    path: str  # relative to the root; as it is written: UTF-8
    name: str  # as the file system has it
    split: str
    size: int
    mtime_ns: int
    inode: int
    mode: int  # of stat; 0 where there is nothing

    @property
    def identity(self) -> tuple[int, int, int]:
        """Of a file that was not changed all these are the same."""
        return self.size, self.mtime_ns, self.inode


def display_path(path: str) -> str:
    """A path that can be written as UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def examine(unit: Unit) -> Examined:
    """Examine the files of a unit that no earlier part has, and write the parts that changed.

    Raises:
        InputError: a folder is not readable, or the disk is full.
    """
    earlier = _Earlier(unit)
    count, examined, unchanged = 0, 0, []
    for part, files in list_parts(unit.root, unit.parts):
        count += len(files)
        if not unit.full and earlier.has(unit.finished, part, files):
            unchanged.append(part.file)
            (unit.working / PARTS / part.file).unlink(missing_ok=True)
            continue
        if earlier.has(unit.working, part, files):
            continue
        known = earlier.rows(part)
        rows = []
        for file in files:
            row = known.get(file.path)
            if row is None or (row.size, row.mtime_ns, row.inode) != file.identity:
                row = _examine_file(unit, part, file)
                examined += 1
            rows.append(row._replace(split=file.split))
        with room_for(VALIDATION, unit.working.parent):
            write_part(unit.working / PARTS / part.file, rows, looks=unit.looks)
    return Examined(count, examined, unchanged)


def list_parts(root: Path, parts: Iterable[Part]) -> Iterator[tuple[Part, list[File]]]:
    """Each part with its files, sorted by path. A folder is listed once if its parts follow each other.

    Raises:
        InputError: a folder is not readable.
    """
    listed: Optional[ClassFolder] = None
    names: list[tuple[str, str]] = []
    for part in parts:
        if part.folder != listed:
            listed = part.folder
            names = sorted((display_path(name), name) for name in list_files(root, listed))
        first = bisect_left(names, (part.first,))
        end = len(names) if part.end is None else bisect_left(names, (part.end,))
        folder_split, limit = part.folder.split, part.val_limit
        yield (
            part,
            [
                _stat(root, path, name, "val" if is_held_out(name, limit) else folder_split)
                for path, name in names[first:end]
            ],
        )


def write_part(path: Path, rows: Iterable[PartRow], *, looks: bool) -> None:
    """Write a part, atomically."""
    columns = list(zip(*rows)) or [()] * len(SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA)]
    schema = SCHEMA.with_metadata({"version": str(VERSION), "looks": str(looks)})
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), out, write_page_checksum=True)
    atomic_write(path, out.getvalue().to_pybytes())


def read_part(path: Path, columns: Optional[list[str]] = None) -> pa.Table:
    """The rows of a part, or some of its columns."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns, use_threads=False)


class _Earlier:
    """The parts that a unit may take rows from: of its own working directory, where a killed run left them, first."""

    def __init__(self, unit: Unit) -> None:
        self.looks = unit.looks
        self.places = [unit.working] if unit.full else [unit.working, unit.finished]
        self.names: dict[Path, dict[str, list[str]]] = {}
        for place in self.places:
            self.names[place] = {}
            folder = place / PARTS
            for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
                self.names[place].setdefault(name.split(".")[0], []).append(name)

    def has(self, place: Path, part: Part, files: list[File]) -> bool:
        """Whether the part is there as it would be written."""
        if part.file not in self.names.get(place, {}).get(part.file.split(".")[0], []):
            return False
        table = self._read(place / PARTS / part.file, [*_IDENTITY, "faults"])
        if table is None or len(table) != len(files):
            return False
        if any(table.column(name).to_pylist() != [getattr(file, name) for file in files] for name in _IDENTITY):
            return False
        (faults,) = as_lists(table, "faults")
        return not any(_may_have_changed(text, file.inode) for text, file in zip(faults, files))

    def rows(self, part: Part) -> dict[str, PartRow]:
        """Every earlier row of the part's range, by path."""
        found: dict[str, PartRow] = {}
        for place in reversed(self.places):
            for name in self.names[place].get(part.file.split(".")[0], []):
                table = self._read(place / PARTS / name, None)
                for row in _rows(table) if table is not None else ():
                    inside = part.first <= row.path and (part.end is None or row.path < part.end)
                    if inside and not _may_have_changed(row.faults, row.inode):
                        found[row.path] = row
        return found

    def _read(self, path: Path, columns: Optional[list[str]]) -> Optional[pa.Table]:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                metadata = file.schema_arrow.metadata or {}
                if metadata.get(b"version") != str(VERSION).encode():
                    return None
                if self.looks and metadata.get(b"looks") != b"True":
                    return None
                return file.read(columns, use_threads=False)
        except (OSError, pa.ArrowException):
            return None


def _may_have_changed(faults: str, inode: int) -> bool:
    """Permission to read a file may come without a new mtime; where there is no file, nothing has changed."""
    return "unreadable" in faults and inode != 0


def _rows(table: pa.Table) -> Iterator[PartRow]:
    return map(PartRow._make, zip(*(table.column(name).to_pylist() for name in PartRow._fields)))


def _stat(root: Path, path: str, name: str, split: str) -> File:
    try:
        status = os.stat(f"{root}/{name}")
    except OSError:  # a link to nothing; it gets a row that says so
        return File(path, name, split, 0, 0, 0, 0)
    return File(path, name, split, status.st_size, status.st_mtime_ns, status.st_ino, status.st_mode)


def _examine_file(unit: Unit, part: Part, file: File) -> PartRow:
    found, size, data = _inspect_file(unit, file)
    faults, reason = list(found.faults), found.reason
    if found.width is not None:
        note = suffix_fault(file.path, found.format)
        if note:
            faults.append("wrong_extension")
            reason = "; ".join(filter(None, (reason, note)))
    if part.folder.class_name == NO_CLASS and not is_hidden(file.name):
        faults.append("no_class")
        reason = "; ".join(filter(None, (reason, "stands beside the class folders")))
    return PartRow(
        path=file.path,
        split=part.folder.split,
        class_name=part.folder.class_name,
        bytes=size,
        width=found.width,
        height=found.height,
        mode=found.mode,
        format=found.format,
        digest=None if data is None else hashlib.sha256(data).digest(),
        checksum=None if data is None else checksum(data),
        reason=reason,
        faults=",".join(sorted(faults)),
        warnings="; ".join(found.warnings),
        look=found.look,
        size=file.size,
        mtime_ns=file.mtime_ns,
        inode=file.inode,
    )


def _inspect_file(unit: Unit, file: File) -> tuple[Inspection, int, Optional[bytes]]:
    """The inspection of a file, its size in bytes and its content, but of what is no image or was not read."""
    if is_hidden(file.name):
        return Inspection(("not_image",), "hidden file or folder"), file.size, None
    try:
        file.name.encode()
        if file.mode and not stat.S_ISREG(file.mode):  # opening a pipe would wait for its writer
            return Inspection(("unreadable",), "no regular file"), 0, None
        with open(f"{unit.root}/{file.name}", "rb", buffering=0) as opened:
            if file.size > MAX_BYTES:
                name = sniff(opened.read(MAGIC_BYTES) or b"")
                if name is not None:
                    found = Inspection(("too_large",), f"more than {MAX_BYTES} bytes; not decoded", format=name)
                    return found, file.size, None
                opened.seek(0)
                return inspect_apart(opened.read(MAGIC_BYTES) or b""), file.size, None
            data = opened.read()
    except UnicodeEncodeError:
        return Inspection(("unreadable",), "the file name is not UTF-8"), file.size, None
    except OSError as error:
        return Inspection(("unreadable",), error.strerror or type(error).__name__), file.size, None
    found = inspect_apart(data, looks=unit.looks)
    return found, len(data), None if found.format is None else data


def warning_names(warnings: str) -> list[str]:
    """The single warnings of a row."""
    return warnings.split("; ") if warnings else []


def as_lists(table: pa.Table, *columns: str) -> list[list[Any]]:
    """Columns of a table as Python lists."""
    return [table.column(name).to_pylist() for name in columns]
