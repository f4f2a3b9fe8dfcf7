"""Is a JPEG whole? A strict decode with libjpeg-turbo, at an eighth of the size and in grey.

It reads every code of the file, as a full decode does, and skips most of the arithmetic after it. Pillow accepts the
files that libjpeg only warns of, and fills the missing part of the picture with grey.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import simplejpeg

_START_OF_SCAN = b"\xff\xda"
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_ATTEMPTS = 64  # to decode a file without its extraneous bytes
_LOST = re.compile(r"Corrupt JPEG data: (?!bad ICC marker)|Premature end of JPEG file")


class StrictDecode(NamedTuple):
    """Result of a strict decode.

    `problem` is the first warning or error of libjpeg; "" if there was none. `extraneous` says whether there are bytes
    before a marker that every decoder skips: harmless ones, or what is left over from damaged image data.
    """

    problem: str
    extraneous: bool = False

    @property
    def lost_data(self) -> bool:
        """Whether a part of the picture is missing. False for other problems, such as a damaged ICC profile."""
        return _LOST.match(self.problem) is not None


def strict_decode(data: bytes) -> StrictDecode:
    """Decode a JPEG to its end.

    libjpeg stops at its first warning. If that is of extraneous bytes, they are cut out and the rest is decoded.
    """
    problem, extraneous, attempts = _problem(data), False, _ATTEMPTS
    while (found := _EXTRANEOUS.fullmatch(problem)) and attempts:
        count, marker, place = int(found[1]), bytes([255, int(found[2], 16)]), len(data)
        # The warning does not say where. A cut before a later marker leaves the same warning, so begin with the last.
        while attempts and (place := data.rfind(marker, 0, place)) >= count:
            attempts -= 1
            shorter = data[: place - count] + data[place:]
            following = _problem(shorter)
            if following != problem:
                data, problem, extraneous = shorter, following, True
                break
        else:
            return StrictDecode(problem)
    return StrictDecode(problem, extraneous)


def scans(data: bytes) -> int:
    """Number of scans of a JPEG, or more: those of a thumbnail in its metadata count as well."""
    return data.count(_START_OF_SCAN)


def ends_in_header(data: bytes) -> bool:
    """Whether a JPEG ends before its first scan begins, which means that it is the beginning of a longer file."""
    position = 2
    while position + 4 <= len(data) and data[position] == 255:
        if data[position : position + 2] == _START_OF_SCAN:
            return False
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position + 4 > len(data)


def _problem(data: bytes) -> str:
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1)  # these two choose the smallest scale, 1/8
    except ValueError as error:
        return str(error)
    return ""
