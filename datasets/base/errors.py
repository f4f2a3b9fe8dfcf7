"""Errors that say what was expected, what was found, where, and what to do next."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """The input or the run is at fault, so repeating the same call fails again (exit code 1).

    Args:
        where: the file, key or machine with the fault.
        expected: what would be right.
        found: what is there instead.
        todo: what the user can do next.
    """

    def __init__(self, where: object, *, expected: str, found: str, todo: str) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}; {todo}")

    @classmethod
    def from_message(cls, message: str) -> InputError:
        """Return an error with this whole text. Pickling uses it to move an error to another process."""
        return cls.__new__(cls, message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_message, (str(self),)


@contextmanager
def room_for(what: str, directory: Union[str, Path]) -> Iterator[None]:
    """Within this context, raise InputError instead of OSError if the disk is full.

    An exhausted quota and a limit on the size of files count as a full disk.

    Args:
        what: what is being written, for the message.
        directory: where it is written, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise no_room(what, directory, str(error.strerror)) from None


def no_room(what: str, directory: Union[str, Path], found: str) -> InputError:
    """Return the error for a disk that has no room for `what` in `directory`; `found` says what the disk reported."""
    todo = "free some, or choose another disk, and run it again"
    return InputError(directory, expected=f"room for {what}", found=found, todo=todo)
