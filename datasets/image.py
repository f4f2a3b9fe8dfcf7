"""One image file: what its bytes are, whether they decode, and which bytes of it are stored in a record.

EXIF orientation is not applied: the decoders of training and of torchvision's ImageFolder ignore it too.
"""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

JPEG_QUALITY = 95
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb: 1 GiB / 4 / 3 bytes a pixel
MAX_BYTES = 200_000_000  # a record must fit in one MindRecord page, which ends at 256 MiB

_MAGIC = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{4}\0\0\0\0",
    "WEBP": rb"RIFF.{4}WEBP",
    "TIFF": rb"II\*\0|MM\0\*",
    "JPEG2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "AVIF": rb".{4}ftypavi[fs]",
    "PPM": rb"P[1-6]\s",
}
_FORMATS = {name: re.compile(pattern, re.DOTALL) for name, pattern in _MAGIC.items()}
MAGIC_BYTES = 16  # the head that `sniff` needs
_KNOWN_SUFFIXES = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "tif": "TIFF", "jp2": "JPEG2000"}


class Inspection(NamedTuple):
    """What one file is. Width and height in pixels; what could not be found out is none."""

    status: str  # ok | converted | corrupt | not_image | empty | too_large | unsupported
    reason: str = ""
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None


def sniff(head: bytes) -> str | None:
    """Pillow's name of the format that a file's first bytes announce; none if they announce no image."""
    return next((name for name, pattern in _FORMATS.items() if pattern.match(head)), None)


def inspect(data: bytes) -> Inspection:
    """Decode a whole file and tell what it is; never raises for what the bytes hold.

    `converted` means that the image is good but will be stored as RGB JPEG (see `stored_bytes`).
    An entropy-coded error in the middle of a JPEG that its decoder papers over is not found: libjpeg only warns of it.
    """
    if not data:
        return Inspection("empty", "no bytes")
    name = sniff(data)
    if name is None:
        return Inspection("not_image", f"begins with {data[:8]!r}, which no known image format does")
    found = Inspection("corrupt", format=name)
    try:
        image = Image.open(io.BytesIO(data), formats=[name])
        found = found._replace(width=image.width, height=image.height, mode=image.mode)
        if image.width * image.height > MAX_PIXELS:
            return found._replace(status="too_large", reason=f"more than {MAX_PIXELS} pixels; not decoded")
        image.load()
        if name == "PNG" and b"IEND" not in data[-4096:]:
            return found._replace(reason="the end is missing")
    except Image.DecompressionBombError:
        return found._replace(status="too_large", reason=f"more than {2 * MAX_PIXELS} pixels; not decoded")
    except UnidentifiedImageError:  # its text holds a memory address, and a manifest must not change between runs
        return found._replace(reason=f"no {name} header after the magic bytes")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and others
        return found._replace(reason=f"{type(error).__name__}: {error}")
    odd = _odd(image, data, name)
    if not odd:
        return found._replace(status="ok")
    try:
        to_rgb(image)
    except ValueError as error:
        return found._replace(status="unsupported", reason=f"{odd}: {error}")
    return found._replace(status="converted", reason=odd)


def stored_bytes(data: bytes, *, short_side: int | None) -> bytes:
    """The bytes that a record holds for a file that `inspect` found usable.

    Grey and RGB files in JPEG or PNG stay as they are, bit for bit. All others, and images whose shorter side exceeds
    `short_side`, become RGB JPEG of quality 95 (bicubic, antialiased; alpha dropped as torchvision's loader does;
    16 bits scaled to 8). Images are never enlarged. A pure function of its arguments and the Pillow version.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    shrink = short_side is not None and min(image.size) > short_side
    if not shrink and not _odd(image, data, sniff(data)):
        return data
    image = to_rgb(image)
    if short_side is not None and shrink:
        scale = short_side / min(image.size)
        width, height = (max(short_side, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def suffix_fault(path: str, name: str | None) -> str:
    """A note where the file name announces another format than the bytes; empty if they agree."""
    suffix = path.rpartition(".")[2].lower()
    announced = _KNOWN_SUFFIXES.get(suffix, suffix.upper())
    return f"the name says {announced}, the bytes say {name}" if announced in _FORMATS and announced != name else ""


def _odd(image: Image.Image, data: bytes, name: str | None) -> str:
    """Why the file is not stored as it is; empty for ordinary ones."""
    if name not in ("JPEG", "PNG"):
        return f"{name} file"
    if name == "PNG" and data[24] == 16:  # the bit depth in IHDR: Pillow opens 16-bit colour as plain RGB
        return f"16 bits a channel, mode {image.mode}"
    if image.mode not in ("L", "RGB"):
        return f"mode {image.mode}"
    if "transparency" in image.info:
        return f"mode {image.mode} with a transparent colour"
    if name == "PNG" and getattr(image, "is_animated", False):
        return "several frames; the first is kept"
    return ""


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; 16 bits are scaled, where Pillow would clip. Raises ValueError for modes without a white level."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # 16-bit grey (mode I in older Pillow); convert("RGB") would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no defined white level")
    return image.convert("RGB")
