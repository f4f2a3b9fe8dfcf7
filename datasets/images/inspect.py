"""One image file: its format, whether it can be decoded, and which bytes a record stores for it.

EXIF orientation is not applied, as the decoders of training and of torchvision's ImageFolder do not apply it either.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from datasets.images import jpeg

JPEG_QUALITY = 95
MAX_PIXELS = 89_478_485  # Pillow warns of a decompression bomb above it: 1 GiB / 4 / 3 bytes a pixel
MAX_BYTES = 200_000_000  # a record must fit in one MindRecord page of 256 MiB
MOST_SCANS = 32  # Pillow writes 10; a JPEG of thousands of scans keeps a decoder busy for an hour

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
MAGIC_BYTES = 16  # that `sniff` needs
_TRUNCATED = re.compile(r"truncat|unexpected end|premature|end of (file|data|stream)|not enough data", re.IGNORECASE)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_KNOWN_SUFFIXES = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "tif": "TIFF", "jp2": "JPEG2000"}


class Inspection(NamedTuple):
    """What one file contains. Width and height are in pixels; None for what could not be read."""

    faults: tuple[str, ...] = ()  # of datasets.manifest.faults.FAULTS; only those that the content alone shows
    reason: str = ""
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    warnings: tuple[str, ...] = ()  # of the decoder, which decoded the file nevertheless
    look: int | None = None  # perceptual hash, if asked for: see `look_of`


def sniff(head: bytes) -> str | None:
    """Return Pillow's name of the format that a file begins with; None if it begins like no image."""
    return next((name for name, pattern in _FORMATS.items() if pattern.match(head)), None)


def inspect(data: bytes, *, looks: bool = False) -> Inspection:
    """Decode a whole file and return what it contains. Raises nothing, whatever the bytes are.

    Whole JPEGs are decoded by libjpeg-turbo (see `jpeg.strict_decode`), all other files by Pillow. `looks` adds the
    perceptual hash.
    """
    return quick_inspect(data, looks=looks) or inspect_with_pillow(data, looks=looks)


def quick_inspect(data: bytes, *, looks: bool = False) -> Inspection | None:
    """Return the inspection of a whole JPEG, or of a file that is no image; None for all files that need Pillow."""
    if not data:
        return Inspection(("empty",), "no bytes")
    name = sniff(data)
    if name is None:
        return Inspection(("not_image",), f"begins with {data[:8]!r}, which no known image format does")
    if name != "JPEG" or jpeg.scans(data) > MOST_SCANS:
        return None
    with _collected_warnings() as said:
        try:
            image = Image.open(io.BytesIO(data), formats=[name])
            found = Inspection(width=image.width, height=image.height, mode=image.mode, format=name)
            decoded = None if image.width * image.height > MAX_PIXELS else jpeg.strict_decode(data)
            if decoded is None or decoded.problem:
                return None
            found = _describe(found, image, data, looks)
        except Exception:  # Pillow says what is wrong when it reads the file again
            return None
    if decoded.extraneous:
        found = _with_fault(found, "extraneous", "extraneous bytes before a JPEG marker")
    return found._replace(warnings=said())


def inspect_with_pillow(data: bytes, *, looks: bool = False) -> Inspection:
    """Return the inspection of an image file that Pillow decodes in full. Raises nothing, whatever follows the head."""
    name = sniff(data)
    if name is None:
        raise ValueError("no image by its first bytes")
    with _collected_warnings() as said:
        found = _decode(data, name, looks)
    return found._replace(warnings=said())


def look_of(image: Image.Image) -> int:
    """Return a perceptual hash of 64 bits (dHash): is each of 8 x 8 places darker than its right neighbour?"""
    image.draft("L", (72, 64))
    values = np.asarray(to_rgb(image).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(values[:, :-1] < values[:, 1:]).tobytes(), "big")


def stored_bytes(data: bytes, *, short_side: int | None, convert: Collection[str]) -> bytes:
    """Return the bytes that a record stores for a file.

    A file is stored bit for bit if it has none of the faults `convert` and its shorter side is at most `short_side`
    pixels. Otherwise it becomes an RGB JPEG of quality 95: resized with antialiased bicubic interpolation, without
    alpha as in torchvision's loader, 16 bits scaled to 8, and turned upright if `convert` contains "orientation".
    Images are never enlarged. The result depends on the arguments and the version of Pillow only.

    Args:
        convert: `faults.conversions` of the file's faults.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    shrink = short_side is not None and min(image.size) > short_side
    if not shrink and not convert:
        return data
    if "orientation" in convert:
        ImageOps.exif_transpose(image, in_place=True)
    image = to_rgb(image)
    if short_side is not None and shrink:
        scale = short_side / min(image.size)
        width, height = (max(short_side, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def suffix_fault(path: str, name: str | None) -> str:
    """Return a note if the file name announces another format than the bytes; "" if they agree."""
    suffix = path.rpartition(".")[2].lower()
    announced = _KNOWN_SUFFIXES.get(suffix, suffix.upper())
    return f"the name says {announced}, the bytes say {name}" if announced in _FORMATS and announced != name else ""


def _decode(data: bytes, name: str, looks: bool) -> Inspection:
    found = Inspection(format=name)
    try:
        image = Image.open(io.BytesIO(data), formats=[name])
        found = found._replace(width=image.width, height=image.height, mode=image.mode)
        if image.width * image.height > MAX_PIXELS:
            return found._replace(faults=("too_large",), reason=f"more than {MAX_PIXELS} pixels; not decoded")
        image.load()
        if name == "PNG" and b"IEND" not in data[-4096:]:
            return found._replace(faults=("truncated",), reason="the end is missing")
    except Image.DecompressionBombError:
        return found._replace(faults=("too_large",), reason=f"more than {2 * MAX_PIXELS} pixels; not decoded")
    except UnidentifiedImageError:  # its text contains a memory address, and a manifest must not change between runs
        if name == "JPEG" and jpeg.ends_in_header(data):
            return found._replace(faults=("truncated",), reason="the file ends in its header")
        return found._replace(faults=("corrupt",), reason=f"no {name} header after the magic bytes")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and others
        fault = "truncated" if _TRUNCATED.search(str(error)) or isinstance(error, EOFError) else "corrupt"
        return found._replace(faults=(fault,), reason=_ADDRESS.sub("", f"{type(error).__name__}: {error}"))
    if name == "JPEG":  # libjpeg warns of lost data; Pillow drops the warning and invents pixels
        decoded = jpeg.strict_decode(data)
        if decoded.lost_data:
            fault = "truncated" if decoded.problem.startswith("Premature end of JPEG file") else "corrupt"
            return found._replace(faults=(fault,), reason=decoded.problem)
    try:
        return _describe(found, image, data, looks)
    except ValueError as error:
        return found._replace(faults=("unsupported",), reason=str(error))


def _describe(found: Inspection, image: Image.Image, data: bytes, looks: bool) -> Inspection:
    """Add what is unusual about an image that can be decoded. Raises ValueError for values without a meaning as RGB."""
    odd, orientation = _oddities(image, data, found.format), _exif_orientation(image)
    found = found._replace(faults=tuple(odd), reason="; ".join(filter(None, odd.values())))
    if orientation != 1:
        found = _with_fault(found, "orientation", f"EXIF orientation {orientation}")
    # last, as it may change the mode of the image
    return found._replace(look=look_of(image)) if looks or image.mode in ("I", "F") else found


def _with_fault(found: Inspection, fault: str, reason: str) -> Inspection:
    return found._replace(faults=(*found.faults, fault), reason="; ".join(filter(None, (found.reason, reason))))


@contextmanager
def _collected_warnings() -> Iterator[Callable[[], tuple[str, ...]]]:
    """Yield a function that returns the sorted warnings that Pillow gave inside the block."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the fault "too_large" says the same
        yield lambda: tuple(sorted({f"{w.category.__name__}: {_gist(str(w.message))}" for w in caught}))


def _exif_orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF raises errors of every kind; decoders do not read it
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _oddities(image: Image.Image, data: bytes, name: str | None) -> dict[str, str]:
    """Return the faults that mode and format of a good image show, each with its reason."""
    odd = {}
    mode = f"mode {image.mode}"
    if name not in ("JPEG", "PNG"):
        odd["container"] = f"{name} file"
    if image.mode.startswith("I") or (name == "PNG" and data[24] == 16):  # Pillow opens 16-bit colour as plain RGB
        odd["sixteen_bit"] = f"16 bits a channel, {mode}"
    elif image.mode in ("P", "PA", "1"):
        odd["palette"] = mode
    elif image.mode == "CMYK":
        odd["ycck" if image.info.get("adobe_transform") == 2 else "cmyk"] = mode
    elif image.mode in ("LAB", "HSV", "YCbCr"):
        odd["colour_space"] = mode
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        odd["alpha"] = mode
    elif "transparency" in image.info:
        odd["alpha"] = f"{mode} with a transparent colour"
    if image.mode in ("L", "LA", "La", "1") or image.mode.startswith("I"):
        odd["grey"] = ""
    if name != "JPEG" and getattr(image, "is_animated", False):
        odd["frames"] = "several frames; the first is kept"
    return odd


def _gist(message: str) -> str:
    """Return the part of a warning that is the same for many files."""
    return re.split(r"[\d(:.]", message, maxsplit=1)[0].strip()[:60]


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as 8-bit RGB, 16 bits scaled to 8. Raises ValueError for modes without a white level."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # 16-bit grey (mode I in older Pillow); convert("RGB") would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no defined white level")
    return image.convert("RGB")
