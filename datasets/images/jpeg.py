"""Whether an ordinary JPEG is whole, in about half the time of decoding it.

Ordinary: baseline, 8 bits, Huffman codes, and segments that every decoder knows. Nothing is concluded of any other
file, or of one with the least irregularity: that is for a real decoder to judge.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple, Optional

import numpy as np

from datasets.images import huffman

_SOF, _DHT, _SOI, _EOI, _SOS, _DQT, _DRI, _APP0, _COM = 0xC0, 0xC4, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xFE
_TAIL = bytes(8)  # what `huffman.walk` reads beyond the end
_DAMAGE = {
    huffman.ENDS_EARLY: "the image data end too early",
    huffman.BAD_CODE: "the image data hold codes that do not exist",
    huffman.BAD_RESTART: "a restart marker is not in its place",
}


class Walk(NamedTuple):
    """What a walk through an ordinary JPEG found. `damage` is empty where every code of the image was there."""

    width: int
    height: int
    components: int
    orientation: int
    damage: str
    extra_bytes: bool  # some stand between the image data and the next marker; every decoder skips them


class _Component(NamedTuple):
    horizontal: int
    vertical: int
    quantisation: int


class _Frame(NamedTuple):
    width: int
    height: int
    components: dict[int, _Component]


def walk(data: bytes) -> Optional[Walk]:
    """Read a JPEG to its end; none where it is no ordinary one."""
    try:
        return _walk(data)
    except (IndexError, struct.error, KeyError):  # a segment is shorter than it says, or one is missing
        return None


def ends_in_header(data: bytes) -> bool:
    """Whether a JPEG ends before its first scan begins, as only the beginning of a file does."""
    position = 2
    while position + 4 <= len(data) and data[position] == 255:
        if data[position + 1] == _SOS:
            return False
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position + 4 > len(data)


def _walk(data: bytes) -> Optional[Walk]:
    position, restart, orientation = 2, 0, 1
    codes: dict[int, huffman.Codes] = {}
    quantisation: set[int] = set()
    frame: Optional[_Frame] = None
    seen: set[int] = set()
    padded, extra, damage = None, False, ""
    while True:
        if data[position] != 255:
            return None
        marker = data[position + 1]
        if marker == _EOI:
            if frame is None or seen != set(frame.components):
                return None
            return Walk(frame.width, frame.height, len(frame.components), orientation, damage, extra)
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        segment = data[position + 4 : end]
        if end > len(data) or end < position + 4:
            return None
        if marker == _DQT:
            if not segment or len(segment) % 65 or any(head > 3 for head in segment[::65]):
                return None
            quantisation.update(segment[::65])
        elif marker == _DHT:
            if not _read_codes(segment, codes):
                return None
        elif marker in (_SOF, _SOF + 1):
            frame = _frame(segment) if frame is None else None
            if frame is None:
                return None
        elif marker == _DRI:
            (restart,) = struct.unpack(">H", segment)
        elif marker == _SOS:
            if frame is None:
                return None
            scan = _scan(segment, frame, codes, quantisation, seen)
            if scan is None:
                return None
            if padded is None:
                padded = np.frombuffer(data + _TAIL, np.uint8)
            state, end = huffman.walk(padded, end, scan[0], restart, *scan[1])
            if state in _DAMAGE:
                return Walk(frame.width, frame.height, len(frame.components), orientation, _DAMAGE[state], extra)
            extra = extra or state == huffman.EXTRA_BYTES
            if data[end] != 255 or not 0 < data[end + 1] < 255:
                extra = True
                end = _next_marker(data, end)
        elif marker == _APP0 + 1 and segment.startswith(b"Exif\0\0"):
            orientation = _orientation(segment[6:])
        elif (marker == _APP0 + 2 and segment.startswith(b"MPF\0")) or not (
            _APP0 <= marker < _APP0 + 16 or marker == _COM
        ):
            return None
        position = end


def _read_codes(segment: bytes, codes: dict[int, huffman.Codes]) -> bool:
    while segment:
        kind, counts = segment[0], segment[1:17]
        total = sum(counts)
        if kind & 0xEF > 3 or len(segment) < 17 + total or total > 256:
            return False
        codes[kind] = huffman.Codes(counts, segment[17 : 17 + total])
        segment = segment[17 + total :]
    return True


def _frame(segment: bytes) -> Optional[_Frame]:
    bits, height, width, count = struct.unpack(">BHHB", segment[:6])
    if bits != 8 or not height or not width or count not in (1, 3) or len(segment) != 6 + 3 * count:
        return None
    parts = [segment[start : start + 3] for start in range(6, len(segment), 3)]
    components = {part[0]: _Component(part[1] >> 4, part[1] & 15, part[2]) for part in parts}
    for axis in (0, 1):
        factors = [component[axis] for component in components.values()]
        if not all(factor in (1, 2, 4) for factor in factors):
            return None
    return _Frame(width, height, components) if len(components) == count else None


def _scan(
    segment: bytes,
    frame: _Frame,
    codes: dict[int, huffman.Codes],
    quantisation: set[int],
    seen: set[int],
) -> Optional[tuple[int, huffman.Tables]]:
    """The number of MCUs and the tables; `seen` receives the components."""
    count = segment[0]
    if len(segment) != 4 + 2 * count or segment[-3:] != b"\0\x3f\0":
        return None
    parts = []
    for name, selector in zip(segment[1:-3:2], segment[2:-3:2]):
        component = frame.components[name]
        if name in seen or component.quantisation not in quantisation:
            return None
        seen.add(name)
        blocks = component.horizontal * component.vertical if count > 1 else 1
        parts.append(huffman.Component(codes[selector >> 4], codes[16 | selector & 15], blocks))
    if not 0 < sum(part.blocks for part in parts) <= 10:
        return None
    tables = huffman.tables(tuple(parts))
    return None if tables is None else (math.prod(_mcus(segment, frame, axis) for axis in (0, 1)), tables)


def _mcus(segment: bytes, frame: _Frame, axis: int) -> int:
    """MCUs of a scan across (0) or down (1); in a scan of one component they are its own blocks (A.2.2)."""
    largest = max(component[axis] for component in frame.components.values())
    factor = frame.components[segment[1]][axis] if segment[0] == 1 else 1
    samples = math.ceil((frame.width, frame.height)[axis] * factor / largest)
    return math.ceil(samples / 8)


def _next_marker(data: bytes, position: int) -> int:
    """Where the next marker stands that is neither a stuffed byte nor a fill byte. Raises IndexError without one."""
    while True:
        position = data.find(b"\xff", position)
        if position < 0:
            raise IndexError("no marker")
        if 0 < data[position + 1] < 255:
            return position
        position += 1


def _orientation(tiff: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none that can be read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if (tag, kind, values) == (0x0112, 3, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
