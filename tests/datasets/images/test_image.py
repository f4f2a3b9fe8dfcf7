"""What single files are taken for, and what of them is stored."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from datasets.images.inspect import inspect, sniff, stored_bytes, suffix_fault
from datasets.manifest.faults import conversions, outcome

CASES = [  # kind, faults, mode, format, part of the reason
    ("rgb.jpg", "", "RGB", "JPEG", ""),
    ("grey.jpg", "grey", "L", "JPEG", ""),
    ("progressive.jpg", "", "RGB", "JPEG", ""),
    ("rgb.png", "", "RGB", "PNG", ""),
    ("grey.png", "grey", "L", "PNG", ""),
    ("cmyk.jpg", "cmyk", "CMYK", "JPEG", "mode CMYK"),
    ("alpha.png", "alpha", "RGBA", "PNG", "mode RGBA"),
    ("grey_alpha.png", "alpha,grey", "LA", "PNG", "mode LA"),
    ("palette.png", "palette", "P", "PNG", "mode P"),
    ("bilevel.png", "grey,palette", "1", "PNG", "mode 1"),
    ("grey16.png", "grey,sixteen_bit", "I;16", "PNG", "16 bits"),
    ("transparent_colour.png", "alpha", "RGB", "PNG", "transparent"),
    ("picture.gif", "container,palette", "P", "GIF", "GIF file"),
    ("picture.bmp", "container", "RGB", "BMP", "BMP file"),
    ("picture.webp", "container", "RGB", "WEBP", "WEBP file"),
    ("picture.tiff", "container", "RGB", "TIFF", "TIFF file"),
    ("float.tiff", "unsupported", "F", "TIFF", "white level"),
    ("truncated.jpg", "truncated", "RGB", "JPEG", "truncated"),
    ("no_end.jpg", "truncated", "RGB", "JPEG", "truncated"),
    ("head_only.jpg", "truncated", None, "JPEG", ""),
    ("truncated.png", "truncated", "RGB", "PNG", "truncated"),
    ("no_end.png", "truncated", "RGB", "PNG", "end is missing"),
    ("damaged.png", "corrupt", "RGB", "PNG", ""),
    ("text.jpg", "not_image", None, None, "this is "),
    ("empty.jpg", "empty", None, None, "no bytes"),
    ("bomb.png", "too_large", None, "PNG", "not decoded"),  # Pillow refuses to open it
    ("large.png", "too_large", "L", "PNG", "not decoded"),  # Pillow opens it with a warning
]


CONVERTED = [case[0] for case in CASES if outcome(filter(None, case[1].split(","))).status == "converted"]
CONVERTED.remove("bilevel.png")  # two levels, far from the picture


def stored(data, short_side):
    return stored_bytes(data, short_side=short_side, convert=conversions(inspect(data).faults))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("kind", "faults", "mode", "file_format", "reason"), CASES, ids=[case[0] for case in CASES])
def test_inspect(image_bytes, kind, faults, mode, file_format, reason):
    found = inspect(image_bytes(kind))
    assert (",".join(sorted(found.faults)), found.mode, found.format) == (faults, mode, file_format)
    status = outcome(found.faults).status
    assert reason in found.reason
    assert (found.reason == "") == (status == "ok")
    assert found.reason == inspect(image_bytes(kind)).reason  # no memory address: a manifest must not change
    if status in ("ok", "converted"):
        assert (found.width, found.height) == (48, 32)


def test_sixteen_bit_colour_is_not_taken_for_ordinary_rgb():
    """Pillow opens 16-bit RGB as mode RGB; only the header's bit depth tells."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    pixels = zlib.compress(b"\0" + struct.pack(">6H", 65535, 0, 32768, 0, 65535, 1))
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    assert inspect(data).faults == ("sixteen_bit",)
    assert "16 bits" in inspect(data).reason


@pytest.mark.parametrize("kind", [case[0] for case in CASES if case[1] in ("", "grey")])
def test_ordinary_files_are_stored_bit_for_bit(image_bytes, kind):
    data = image_bytes(kind)
    assert stored(data, short_side=None) == data
    assert stored(data, short_side=32) == data  # 48 x 32 needs no shrinking
    assert stored(data, short_side=100) == data  # and nothing is enlarged


@pytest.mark.parametrize("kind", [case[0] for case in CASES if case[0] in CONVERTED])
def test_odd_files_become_rgb_jpeg_of_the_same_picture(image_bytes, kind):
    data = image_bytes(kind, 3)
    found = stored(data, short_side=None)
    image = Image.open(io.BytesIO(found))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 32))
    reference = Image.open(io.BytesIO(image_bytes("grey.png" if "grey" in kind else "rgb.png", 3))).convert("RGB")
    error = np.abs(np.asarray(image, dtype=int) - np.asarray(reference, dtype=int)).mean()
    # JPEG alone costs about 2 of 255 levels here; the web palette of GIF and PNG mode P up to 25
    assert error < (25 if kind in ("palette.png", "picture.gif") else 6)
    assert found == stored(data, short_side=None)


@pytest.mark.parametrize(
    ("kind", "short_side", "size"),
    [("rgb.jpg", 16, (24, 16)), ("grey.png", 8, (12, 8)), ("cmyk.jpg", 16, (24, 16)), ("rgb.png", 31, (46, 31))],
)
def test_short_side(image_bytes, kind, short_side, size):
    image = Image.open(io.BytesIO(stored(image_bytes(kind), short_side=short_side)))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", size)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"BM a text", None),
        (b"RIFF1234WAVE", None),
        (b"RIFF1234WEBP", "WEBP"),
        (b"", None),
    ],
)
def test_sniff(head, name):
    assert sniff(head) == name


@pytest.mark.parametrize(
    ("path", "name", "noted"),
    [
        ("a.JPEG", "JPEG", False),
        ("a.jpg", "JPEG", False),
        ("a.JPEG", "PNG", True),
        ("a", "PNG", False),
        ("a.x", "PNG", False),
    ],
)
def test_suffix_fault(path, name, noted):
    assert bool(suffix_fault(path, name)) == noted
