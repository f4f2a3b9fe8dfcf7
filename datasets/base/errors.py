"""Errors that say what was expected, what was found, where, and what to do next."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """The input or the run is at fault, and repeating the same call cannot help (exit code 1).

    Args:
        where: file, key or machine in which the fault was found.
        expected: what would have been right.
        found: what was there instead.
        todo: what the user does next.
    """

    def __init__(self, where: object, *, expected: str, found: str, todo: str) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}; {todo}")

    @classmethod
    def from_message(cls, message: str) -> InputError:
        """The same error again, from its text: how it crosses from one process to another."""
        return cls.__new__(cls, message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_message, (str(self),)


@contextmanager
def room_for(what: str, directory: Union[str, Path]) -> Iterator[None]:
    """Make an InputError of a full disk, an exhausted quota and a limit on the size of files."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise no_room(what, directory, str(error.strerror)) from None


def no_room(what: str, directory: Union[str, Path], found: str) -> InputError:
    """What is raised where a disk cannot take what should be written to `directory`."""
    todo = "free some, or choose another disk, and run it again"
    return InputError(directory, expected=f"room for {what}", found=found, todo=todo)
