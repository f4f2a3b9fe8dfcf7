"""Walk through the Huffman codes of a JPEG scan without making pixels of them: is the image whole?

Decoding a JPEG to its end finds three things: codes that do not exist, too many coefficients, and an end that comes too
early. All three show in the lengths of the codes alone, so nothing is dequantised, transformed or stored. The walk is
compiled by numba. ITU-T T.81, annexes B, C and F; the checks are those of which libjpeg warns.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Optional

import numpy as np
import numpy.typing as npt
from numba import njit

RUN_BITS = 12  # bits that are looked up at a time: tables of 8 KB stay in the first-level cache
WHOLE, ENDS_EARLY, BAD_CODE, BAD_RESTART, EXTRA_BYTES = range(5)

_END_OF_BLOCK = 1 << 12


class Codes(NamedTuple):
    """A Huffman table as a DHT segment has it: counts of codes of 1 to 16 bits, then their symbols (annex C)."""

    counts: bytes
    symbols: bytes


class Component(NamedTuple):
    """What a scan says of a component: its codes, and its number of blocks in an MCU."""

    dc: Codes
    ac: Codes
    blocks: int


class Tables(NamedTuple):
    """What the next bits mean, as (length | coefficients << 5 | end of block << 12); 0: no code.

    Table 2 c is for the DC codes of component c, 2 c + 1 for its AC codes. `single` (2 C, 65536) uint16 has the one
    code with its value bits for every 16 bits; `runs` (2 C, 4096) uint16 all AC codes, or the one DC code, that begin
    and end in RUN_BITS, with their value bits. `of` (B,) uint64 is the DC table of each block of an MCU.
    """

    of: npt.NDArray[np.uint64]
    single: npt.NDArray[np.uint16]
    runs: npt.NDArray[np.uint16]


@lru_cache(maxsize=16)  # half a megabyte each; most files have the codes of the standard's annex K
def tables(scan: tuple[Component, ...]) -> Optional[Tables]:
    """The tables of a scan with these components; none if its codes are no valid ones."""
    single, runs = (np.zeros((2 * len(scan), 1 << bits), np.uint16) for bits in (16, RUN_BITS))
    for row, codes in enumerate(codes for component in scan for codes in (component.dc, component.ac)):
        counts, symbols = (np.frombuffer(part, np.uint8) for part in codes)
        if not _fill(counts, symbols, row % 2 == 0, single[row], runs[row]):
            return None
    of = [2 * row for row, component in enumerate(scan) for _ in range(component.blocks)]
    return Tables(np.array(of, np.uint64), single, runs)


@njit(nogil=True, cache=True)
def _fill(counts, symbols, dc, single, runs):  # type: ignore[no-untyped-def]
    lengths = np.zeros(1 << 16, np.uint8)  # of the codes alone
    code, place = 0, 0
    for length in range(1, 17):
        for _ in range(counts[length - 1]):
            if code >= 1 << length:
                return False
            size, run = symbols[place] & 15, symbols[place] >> 4
            entry = (length + size) | (run + 1) << 5
            if dc:
                if symbols[place] > 15:
                    return False
                entry = (length + size) | 1 << 5 if size <= 11 else 0
            elif size == 0:
                entry = length | 16 << 5 if run == 15 else length | _END_OF_BLOCK if run == 0 else 0
            elif size > 10:
                entry = 0
            single[code << (16 - length) : (code + 1) << (16 - length)] = entry
            lengths[code << (16 - length) : (code + 1) << (16 - length)] = length
            code += 1
            place += 1
        code <<= 1
    for bits in range(1 << RUN_BITS):
        length, advance, end = 0, 0, 0
        while end == 0 and length < RUN_BITS and not (dc and length):
            following = (bits << length & ((1 << RUN_BITS) - 1)) << (16 - RUN_BITS)
            entry = np.int64(single[following])
            if entry == 0 or length + lengths[following] > RUN_BITS or advance + (entry >> 5 & 127) > 63:
                break
            length += entry & 31
            advance += entry >> 5 & 127
            end = entry & _END_OF_BLOCK
        runs[bits] = length | advance << 5 | end
    return True


@njit(nogil=True, cache=True)
def walk(data, start, mcus, restart, of, single, runs):  # type: ignore[no-untyped-def]
    """Read the scan that begins at data[start]; give its state (WHOLE and so on) and where its last bytes stand.

    Args:
        data: (N,) uint8: the file, then 8 bytes that are no part of it.
        mcus: in the scan.
        restart: MCUs between restart markers; 0: none.
        of, single, runs: the `Tables` of the scan.
    """
    size = len(data) - 8
    position, bits, padding = start, np.int64(0), np.int64(0)
    buffer = np.uint64(0)
    until_restart, restarts, extra = restart, 0, False
    for _ in range(mcus):
        if restart > 0 and until_restart == 0:
            if bits < padding:
                return ENDS_EARLY, position
            extra = extra or bits - padding >= 8
            while position < size and not (data[position] == 255 and 0 < data[position + 1] < 255):
                extra = extra or data[position] != 255
                position += 1
            if position + 1 >= size:
                return ENDS_EARLY, position
            if data[position + 1] != 0xD0 + restarts % 8:
                return BAD_RESTART, position
            position += 2
            restarts += 1
            until_restart = restart
            buffer, bits, padding = np.uint64(0), np.int64(0), np.int64(0)
        until_restart -= 1
        for dc_table in of:
            table, k = dc_table, np.int64(0)
            while k < 64:
                if bits < 32:
                    word = (
                        np.uint32(data[position]) << np.uint32(24)
                        | np.uint32(data[position + 1]) << np.uint32(16)
                        | np.uint32(data[position + 2]) << np.uint32(8)
                        | np.uint32(data[position + 3])
                    )
                    has_ff = np.uint32(np.uint32(~word) - np.uint32(0x01010101)) & word & np.uint32(0x80808080)
                    if has_ff == 0 and position + 4 <= size:
                        buffer = buffer << np.uint64(32) | np.uint64(word)
                        position += 4
                        bits += 32
                    else:
                        for _ in range(4):
                            byte = np.uint64(0)
                            if position >= size:
                                padding += 8
                            elif data[position] != 255:
                                byte = np.uint64(data[position])
                                position += 1
                            elif data[position + 1] == 0:
                                byte = np.uint64(255)
                                position += 2
                            else:  # a marker: the scan or its part ends here
                                padding += 8
                            buffer = buffer << np.uint64(8) | byte
                            bits += 8
                next_run = buffer >> np.uint64(bits - RUN_BITS) & np.uint64((1 << RUN_BITS) - 1)
                entry = np.int64(runs[table, next_run])
                if entry == 0 or k + (entry >> 5 & 127) > 63:  # of a run the last codes may be of the next block
                    entry = np.int64(single[table, buffer >> np.uint64(bits - 16) & np.uint64(0xFFFF)])
                    if entry == 0 or k + (entry >> 5 & 127) > 64:
                        return (ENDS_EARLY if bits - padding < 16 else BAD_CODE), position
                table = dc_table + np.uint64(1)
                bits -= entry & 31
                k += entry >> 5 & 127
                if entry >= _END_OF_BLOCK:
                    break
        if bits < padding:
            return ENDS_EARLY, position
    return (EXTRA_BYTES if extra or bits - padding >= 8 else WHOLE), position
