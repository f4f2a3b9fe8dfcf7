"""Read tar archives that may be malicious: member by member, in constant memory, with every name checked.

Python's `tarfile` only parses the headers, with the long names of GNU and pax. The rest of it is not used: it keeps a
list of all members, takes a damaged header for the end of the archive, and trusts lengths.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple, NoReturn, Optional

from datasets.base.errors import InputError
from datasets.base.files import PathLike

BLOCK = 1 << 20  # bytes read at once; longer headers are refused, so a forged one cannot fill the memory
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a fifo",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, zlib.error, lzma.LZMAError)


class Member(NamedTuple):
    """One file of an archive."""

    parts: tuple[str, ...]  # of its relative path, without "." and ".."
    offset: int  # of its content, in bytes from the start of the archive
    size: int


class InnerTar(NamedTuple):
    """A tar of one class, stored in a plain tar."""

    name: str
    class_name: str
    offset: int  # in bytes from the start of the outer tar
    size: int


class Archive:
    """An archive that is read once from start to end. Errors name it as `where`."""

    def __init__(self, file: IO[bytes], where: str, start: int = 0, size: Optional[int] = None) -> None:
        self.where = where
        self._region = _Region(file, start, size)
        self._size = size

    @property
    def compressed(self) -> bool:
        """Whether the archive is compressed: offsets then count decompressed bytes."""
        return self._size is None

    def members(self) -> Iterator[Member]:
        """Yield the files in stored order, without folders. Read a file's content before the next file is requested.

        Raises:
            InputError: the archive is truncated or damaged, a member is neither a plain file nor a folder, or its name
                is absolute or contains "..".
        """
        try:
            tar = tarfile.TarFile(fileobj=self._region, mode="r", encoding="utf-8", errors="surrogateescape")
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            todo = "name a .tar, or one compressed by gzip, bzip2 or xz"
            raise InputError(self.where, expected="a tar archive", found=f"none ({error})", todo=todo) from None
        tar.offset = 0
        last = -1
        while True:
            try:
                if tar.offset <= last:  # a negative length
                    raise ValueError("a member that ends before it begins")
                last = tar.offset
                self._region.seek(tar.offset)
                info = tarfile.TarInfo.fromtarfile(tar)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                return self._drain()
            except (*_DAMAGE, OSError) as error:
                self._damaged(error, f"at byte {tar.offset:,}")
            parts = safe_parts(info.name, self.where)
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                kind = _KINDS.get(info.type, "a sparse file" if info.isreg() else f"a member of type {info.type!r}")
                refuse(self.where, f"{kind}, {info.name!r}")
            if not parts:
                refuse(self.where, f"a file without a name, {info.name!r}")
            end = info.offset_data + info.size
            if info.size < 0 or (self._size is not None and end > self._size):
                self._damaged(EOFError(f"it ends within {info.name!r}"))
            yield Member(parts, info.offset_data, info.size)

    def content(self, member: Member) -> Iterator[bytes]:
        """Yield the content of the member that `members` yielded last, in blocks.

        Raises:
            InputError: the archive ends within it, or the compressed data is damaged.
        """
        left = member.size
        try:
            self._region.seek(member.offset)
            while left:
                block = self._region.read(min(left, BLOCK))
                if not block:
                    raise EOFError(f"it ends within {'/'.join(member.parts)!r}")
                left -= len(block)
                yield block
        except (*_DAMAGE, OSError) as error:
            self._damaged(error)

    def _drain(self) -> None:
        """Read to the end of a compressed file, because its checksum is there."""
        try:
            while self._size is None and self._region.read(BLOCK):
                pass
        except (*_DAMAGE, OSError) as error:
            self._damaged(error)

    def _damaged(self, error: Exception, place: str = "") -> NoReturn:
        if isinstance(error, OSError) and error.errno is not None:  # a fault of the disk; decompressors set no number
            raise error
        truncated = (EOFError, tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]
        found = "a truncated one" if isinstance(error, truncated) else "a damaged one"
        details = " ".join(part for part in (place, f"({error})" if str(error) else "") if part)
        raise InputError(
            self.where,
            expected="a whole tar archive",
            found=f"{found} {details}".rstrip(),
            todo="download or copy it again",
        ) from None


@contextmanager
def opened(path: PathLike, inner: Optional[InnerTar] = None) -> Iterator[Archive]:
    """Open a tar, or with `inner` a tar that is stored in it, without a copy.

    The first bytes of a tar decide whether it is plain or compressed with gzip, bzip2 or xz.

    Raises:
        InputError: it cannot be opened.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(6)
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(path, expected="a tar archive", found=found, todo="correct the path") from None
    if inner is not None:
        with open(path, "rb", buffering=0) as file:
            yield Archive(file, f"{path}: {inner.name}", inner.offset, inner.size)
        return
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        with open(path, "rb", buffering=0) as plain:
            yield Archive(plain, str(path), size=path.stat().st_size)
    else:
        with opener(path, "rb") as unpacked:
            yield Archive(unpacked, str(path))


def safe_parts(name: str, where: str) -> tuple[str, ...]:
    """Return the parts of a relative path; () for ".".

    Raises:
        InputError: the name is absolute, or contains ".." or a NUL.
    """
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\0" in name:
        refuse(where, f"the name {name!r}")
    return parts


def refuse(where: str, found: str) -> NoReturn:
    """Raise InputError for an unsafe member."""
    raise InputError(
        where,
        expected="plain files and folders under relative names without '..', each once",
        found=found,
        todo="get the archive from another source, or pack the images again",
    )


class _Region(io.RawIOBase):
    """A part of a file, as a file object for tarfile. One call of `read` returns at most BLOCK bytes."""

    def __init__(self, file: IO[bytes], start: int, size: Optional[int]) -> None:
        self._file, self._start, self._size = file, start, size
        self._file.seek(start)
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < 0:
            raise ValueError(f"a length that leads to byte {position}")
        if position != self._position:
            self._file.seek(self._start + position)
            self._position = position
        return position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= BLOCK:
            raise ValueError(f"a header of {size} bytes")
        if self._size is not None:
            size = max(0, min(size, self._size - self._position))
        data = self._file.read(size)
        self._position += len(data)
        return data
