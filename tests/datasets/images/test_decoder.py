"""Files that kill or delay a decoder, with real processes."""

from __future__ import annotations

import sys
import time

import pytest

from datasets.images.decoder import Decoder, inspect_apart
from datasets.images.inspect import inspect

BAD_DECODER = """
import os, signal, sys, time
import datasets.images.decoder
from datasets.images.inspect import Inspection, inspect_with_pillow
def inspect(data, *, looks=False):
    if b"kill me" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"crash me" in data:
        import ctypes
        ctypes.string_at(0)
    if b"keep me" in data:
        time.sleep(1000)
    if b"fill me" in data:
        bytearray(64 << 30)
    print("noise of a library", flush=True)
    print("noise of a library", file=sys.stderr, flush=True)
    return inspect_with_pillow(data, looks=looks)
datasets.images.decoder.inspect_with_pillow = inspect
datasets.images.decoder.main()
"""


@pytest.fixture
def decoder():
    """A decoder that crashes or hangs on files that contain certain words."""
    made = Decoder(seconds=3, command=[sys.executable, "-c", BAD_DECODER])
    yield made
    made.close()


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("kill me", "the decoder died"),
        ("crash me", "the decoder died"),
        ("keep me", "the decoder did not finish in 3 s"),
        ("fill me", "the decoder died"),
    ],
)
def test_a_file_that_ends_its_decoder_is_corrupt_and_the_next_is_decoded(decoder, image_bytes, order, reason):
    good = image_bytes("rgb.png")
    assert decoder.inspect(good) == inspect(good)
    found = decoder.inspect(good + order.encode())
    assert (found.faults, found.reason, found.format) == (("corrupt",), reason, "PNG")
    assert decoder.inspect(good) == inspect(good)


def test_a_whole_jpeg_needs_no_decoder(image_bytes, monkeypatch):
    monkeypatch.setattr(Decoder, "inspect", None)
    assert inspect_apart(image_bytes("rgb.jpg")).faults == ()
    assert inspect_apart(image_bytes("text.jpg")).faults == ("not_image",)


def test_a_jpeg_of_endless_scans_does_not_hold_up(image_bytes):
    """80 million pixels, refined 4,000 times in 60 KB: an hour of work for a decoder."""
    data = endless_scans(8960, 8960, 4000)
    decoder = Decoder(seconds=2)
    started = time.monotonic()
    found = decoder.inspect(data)
    decoder.close()
    assert found.faults == ("corrupt",)
    assert "did not finish in 2 s" in found.reason
    assert time.monotonic() - started < 20


def endless_scans(width, height, scans):
    """A grey progressive JPEG. In each of its scans all blocks end at once."""

    def segment(marker, body):
        return bytes([255, marker]) + (len(body) + 2).to_bytes(2, "big") + body

    frame = b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x01\x01\x11\0"
    head = b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64)) + segment(0xC2, frame)
    head += segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")  # the one code: 2^14 + 14 bits blocks end here
    blocks = (width // 8) * (height // 8)
    bits = ""
    while blocks > 0:
        run = min(blocks, (1 << 15) - 1)
        bits += "0" + format(max(run - (1 << 14), 0), "014b")
        blocks -= max(run, 1 << 14)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + data
    return head + scan * scans + b"\xff\xd9"
