"""The units of a validation's work: list folders, examine their files, write the rows of each folder as a part.

A part is a Parquet file with one row for each file of a class folder, or of a range of a large one. It contains what
the file alone shows. Labels, copies and the effect of the policy need the whole data set: see whole.py. Rows of
earlier parts are taken over for files that have the same path, size, mtime and inode.
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
from datasets.validation.options import VERSION

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

_Bytes = bytes  # PartRow has a column of this name


class PartRow(NamedTuple):
    """The columns of a part."""

    path: str
    split: str
    class_name: str
    bytes: int  # that were read
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
    """The files of a class folder with `first` <= path < `end`. Most folders are a single part, from "" to None."""

    name: str  # of the folder; no other folder has it
    number: int  # of the part in its folder
    folder: ClassFolder
    files: int  # when it was planned
    val_limit: Optional[bytes] = None  # of `datasets.layout.is_held_out`
    first: str = ""
    end: Optional[str] = None

    @property
    def file(self) -> str:
        return f"{self.name}.{self.number:05d}.parquet"


class Examined(NamedTuple):
    """Result of a unit: its number of files, how many of them were read, and whether all rows are as they were."""

    files: int
    examined: int
    unchanged: bool


class ValidationUnit(NamedTuple):
    """Parts that one process examines, one after the other."""

    root: Path
    working: Path  # receives the parts; contains those of an interrupted validation
    finished: Optional[Path]  # an earlier validation, whose rows may be taken over
    parts: list[Part]
    looks: bool = False  # whether to compute perceptual hashes

    @property
    def files(self) -> int:
        return sum(part.files for part in self.parts)

    def examine(self) -> Examined:
        """Write the parts. Only files without a row in an earlier part are read.

        Raises:
            InputError: a folder is not readable, or the disk is full.
        """
        count, examined, unchanged = 0, 0, True
        for part, files in list_parts(self.root, self.parts):
            count += len(files)
            finished = {} if self.finished is None else _earlier_rows(self.finished, part, self.looks)
            known = {**finished, **_earlier_rows(self.working, part, self.looks)}
            rows = []
            for file in files:
                row = known.get(file.path)
                if row is None or not _same(row, file):
                    row = _examine_file(self, part, file)
                    examined += 1
                rows.append(row._replace(split=file.split))
            unchanged = unchanged and rows == list(finished.values())
            with room_for(VALIDATION, self.working.parent):
                _write_part(self.working / PARTS / part.file, rows, looks=self.looks)
        return Examined(count, examined, unchanged)


class File(NamedTuple):
    """A file of a part, as the folder shows it."""

    path: str  # relative to the root; as it is written: UTF-8
    name: str  # as the file system has it
    split: str
    size: int
    mtime_ns: int
    inode: int
    mode: int  # of stat; 0 for a link to nothing


def display_path(path: str) -> str:
    """Return a path that can be written as UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def list_parts(root: Path, parts: Iterable[Part]) -> Iterator[tuple[Part, list[File]]]:
    """Yield each part with its files, sorted by path. Parts of one folder that follow each other list it once.

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
        yield part, [_stat(root, part, path, name) for path, name in names[first:end]]


def read_part(directory: Path, part: Part) -> pa.Table:
    """Return the rows of a part of a validation."""
    with pq.ParquetFile(directory / PARTS / part.file, page_checksum_verification=True) as file:
        return file.read(use_threads=False)


def _write_part(path: Path, rows: Iterable[PartRow], *, looks: bool) -> None:
    columns = list(zip(*rows)) or [()] * len(SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA)]
    schema = SCHEMA.with_metadata({"version": str(VERSION), "looks": str(looks)})
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), out, write_page_checksum=True)
    atomic_write(path, out.getvalue().to_pybytes())


def _earlier_rows(directory: Path, part: Part, looks: bool) -> dict[str, PartRow]:
    """Return the rows of the part's range by path, sorted. The ranges of a large folder may have been others then."""
    found: dict[str, PartRow] = {}
    for path in sorted((directory / PARTS).glob(f"{part.name}.*.parquet")):
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                metadata = file.schema_arrow.metadata or {}
                if metadata.get(b"version") != str(VERSION).encode() or (looks and metadata[b"looks"] != b"True"):
                    continue
                if not _overlaps(file.metadata, part):
                    continue
                table = file.read(use_threads=False)
        except (OSError, pa.ArrowException):
            continue
        for row in map(PartRow._make, zip(*(table.column(name).to_pylist() for name in PartRow._fields))):
            if part.first <= row.path and (part.end is None or row.path < part.end):
                found[row.path] = row
    return found


def _overlaps(metadata: Any, part: Part) -> bool:
    if not metadata.num_row_groups:
        return False
    paths = metadata.row_group(0).column(0).statistics
    return paths is None or (part.first <= paths.max and (part.end is None or paths.min < part.end))


def _same(row: PartRow, file: File) -> bool:
    """Whether a file is as its row says. Permission to read a file may come without a new mtime."""
    same = (row.size, row.mtime_ns, row.inode) == (file.size, file.mtime_ns, file.inode)
    return same and ("unreadable" not in row.faults or file.inode == 0)


def _stat(root: Path, part: Part, path: str, name: str) -> File:
    split = "val" if is_held_out(name, part.val_limit) else part.folder.split
    try:
        status = os.stat(f"{root}/{name}")
    except OSError:  # a link to nothing gets a row that says so
        return File(path, name, split, 0, 0, 0, 0)
    return File(path, name, split, status.st_size, status.st_mtime_ns, status.st_ino, status.st_mode)


def _examine_file(unit: ValidationUnit, part: Part, file: File) -> PartRow:
    found, size, data = _inspect_file(unit, file)
    faults, reason = list(found.faults), found.reason
    if found.width is not None:
        note = suffix_fault(file.path, found.format)
        if note:
            faults.append("wrong_extension")
            reason = "; ".join(filter(None, (reason, note)))
    if part.folder.class_name == NO_CLASS and not is_hidden(file.name):
        faults.append("no_class")
        reason = "; ".join(filter(None, (reason, "is outside the class folders")))
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


def _inspect_file(unit: ValidationUnit, file: File) -> tuple[Inspection, int, Optional[bytes]]:
    """Return inspection, size in bytes and content of a file; no content if it is no image or was not read."""
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
