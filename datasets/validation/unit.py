"""A unit of work: some files of a data set, examined one by one, and the table with a row for each.

A row contains what the file alone shows. Labels, copies and the effect of the policy need the whole data set: see
whole.py. Rows of earlier tables are taken over for files that have the same path, size, mtime and inode.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple, Optional

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.base.digests import checksum
from datasets.base.errors import room_for
from datasets.base.files import atomic_write
from datasets.images.decoder import inspect_apart
from datasets.images.inspect import MAGIC_BYTES, MAX_BYTES, Inspection, sniff, suffix_fault
from datasets.layout import NO_CLASS, display_path, is_hidden
from datasets.manifest.rows import Int32, Sha256, UInt64, Xxh3, rows_of, schema_of
from datasets.validation.options import VERSION

TABLES = "parts"  # folder of a validation
VALIDATION = "the validation"


class FileRow(NamedTuple):
    """A file of the data set, as far as it is known without the others. Most columns are those of the manifest."""

    path: str
    split: str
    class_name: str
    bytes: int  # that were read
    width: Int32 | None
    height: Int32 | None
    mode: str | None
    format: str | None
    digest: Sha256 | None
    checksum: Xxh3 | None
    reason: str
    faults: str
    warnings: str  # of the decoder, with "; "
    look: UInt64 | None  # perceptual hash
    size: int  # this and the next two: of the file when it was examined
    mtime_ns: int
    inode: UInt64


SCHEMA = schema_of(FileRow)


class ValidationUnit(NamedTuple):
    """Files that one process examines, one after the other."""

    root: Path
    working: Path  # receives the table; contains those of an interrupted validation
    finished: Optional[Path]  # an earlier validation, whose rows may be taken over
    number: int
    classes: list[tuple[str, str, str]]  # split, class, and paths with NULs: lists would be larger, and slow to pass on
    looks: bool = False  # whether to compute perceptual hashes

    @property
    def files(self) -> int:
        return sum(paths.count("\0") + 1 for _, _, paths in self.classes)

    @property
    def table(self) -> str:
        """Path of the table in the directory of a validation."""
        return f"{TABLES}/{self.number:05d}.parquet"

    def examine(self) -> int:
        """Write the table, and return the number of files that were read: those without a row in an earlier table.

        Raises:
            InputError: the disk is full.
        """
        known = self._earlier_rows()
        rows, examined = [], 0
        for split, class_name, paths in self.classes:
            for path in paths.split("\0"):
                try:
                    status = os.stat(f"{self.root}/{path}")
                    stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
                    regular = stat.S_ISREG(status.st_mode)
                except OSError:  # a link to nothing gets a row that says so
                    stamp, regular = (0, 0, 0), True
                row = known.get(display_path(path))
                if row is None or row.class_name != class_name or not _same(row, stamp):
                    row = self._examine_file(path, class_name, stamp, regular)
                    examined += 1
                rows.append(row._replace(split=split))
        columns = [pa.array(values, field.type) for values, field in zip(zip(*rows), SCHEMA)]
        out = pa.BufferOutputStream()
        table = pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(self._metadata()))
        pq.write_table(table, out, write_page_checksum=True)
        with room_for(VALIDATION, self.working.parent):
            atomic_write(self.working / self.table, out.getvalue().to_pybytes())
        return examined

    def _metadata(self) -> dict[bytes, bytes]:
        return {b"version": str(VERSION).encode(), b"looks": str(self.looks).encode()}

    def _earlier_rows(self) -> dict[str, FileRow]:
        """Return the rows of earlier tables by path. They may have been of other units then."""
        paths = [display_path(path) for _, _, paths in self.classes for path in paths.split("\0")]
        wanted, first, last = pa.array(paths), min(paths), max(paths)
        found: dict[str, FileRow] = {}
        for directory in filter(None, (self.finished, self.working)):
            for name in sorted((directory / TABLES).glob("*.parquet")):
                try:
                    with pq.ParquetFile(name, page_checksum_verification=True) as file:
                        metadata = file.schema_arrow.metadata or {}
                        there = file.metadata.row_group(0).column(0).statistics  # of the paths
                        if metadata.get(b"version") != self._metadata()[b"version"] or (
                            self.looks and metadata.get(b"looks") != b"True"
                        ):
                            continue
                        if there is not None and there.has_min_max and (there.max < first or last < there.min):
                            continue
                        table = file.read(use_threads=False)
                except (OSError, pa.ArrowException):  # a damaged table: its files are examined again
                    continue
                table = table.filter(pc.is_in(table["path"], value_set=wanted))
                found.update((row.path, row) for row in rows_of(table.to_batches(), FileRow))
        return found

    def _examine_file(self, path: str, class_name: str, stamp: tuple[int, int, int], regular: bool) -> FileRow:
        found, length, data = self._inspect(path, stamp[0], regular)
        shown = display_path(path)
        faults, reasons = list(found.faults), [found.reason]
        note = "" if found.width is None else suffix_fault(shown, found.format)
        if note:
            faults.append("wrong_extension")
            reasons.append(note)
        if class_name == NO_CLASS and not is_hidden(path):
            faults.append("no_class")
            reasons.append("is outside the class folders")
        return FileRow(
            path=shown,
            split="",
            class_name=class_name,
            bytes=length,
            width=found.width,
            height=found.height,
            mode=found.mode,
            format=found.format,
            digest=None if data is None else hashlib.sha256(data).digest(),
            checksum=None if data is None else checksum(data),
            reason="; ".join(filter(None, reasons)),
            faults=",".join(sorted(faults)),
            warnings="; ".join(found.warnings),
            look=found.look,
            size=stamp[0],
            mtime_ns=stamp[1],
            inode=stamp[2],
        )

    def _inspect(self, path: str, size: int, regular: bool) -> tuple[Inspection, int, Optional[bytes]]:
        """Return inspection, size in bytes and content of a file; no content if it is no image or was not read."""
        if is_hidden(path):
            return Inspection(("not_image",), "hidden file or folder"), size, None
        if display_path(path) != path:
            return Inspection(("unreadable",), "the file name is not UTF-8"), size, None
        if not regular:  # opening a pipe would wait for its writer
            return Inspection(("unreadable",), "no regular file"), 0, None
        try:
            with open(f"{self.root}/{path}", "rb", buffering=0) as opened:
                data = opened.read(MAGIC_BYTES if size > MAX_BYTES else -1)
        except OSError as error:
            return Inspection(("unreadable",), error.strerror or type(error).__name__), size, None
        name = sniff(data)
        if size > MAX_BYTES and name is not None:
            return Inspection(("too_large",), f"more than {MAX_BYTES} bytes; not decoded", format=name), size, None
        found = inspect_apart(data, looks=self.looks)
        return found, size if size > MAX_BYTES else len(data), None if name is None else data


def _same(row: FileRow, stamp: tuple[int, int, int]) -> bool:
    """Whether a file is as its row says. Permission to read a file may come without a new mtime."""
    same = (row.size, row.mtime_ns, row.inode) == stamp
    return same and ("unreadable" not in row.faults or stamp[2] == 0)
