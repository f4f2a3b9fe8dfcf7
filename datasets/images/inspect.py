"""One image file: what its bytes are, whether they decode, and which bytes of it are stored in a record.

EXIF orientation is not applied: the decoders of training and of torchvision's ImageFolder ignore it too.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from datasets.images import jpeg
from datasets.manifest.faults import conversions

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
_TRUNCATED = re.compile(r"truncat|unexpected end|premature|end of (file|data|stream)|not enough data", re.IGNORECASE)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_KNOWN_SUFFIXES = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "tif": "TIFF", "jp2": "JPEG2000"}


class Inspection(NamedTuple):
    """What one file is. Width and height in pixels; what could not be found out is none."""

    faults: tuple[str, ...] = ()  # of datasets.manifest.faults.FAULTS; only those that the content alone shows
    reason: str = ""
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    warnings: tuple[str, ...] = ()  # what the decoder complained of and went on
    look: int | None = None  # perceptual hash, where asked for: see `look_of`


def sniff(head: bytes) -> str | None:
    """Pillow's name of the format that a file's first bytes announce; none if they announce no image."""
    return next((name for name, pattern in _FORMATS.items() if pattern.match(head)), None)


def inspect(data: bytes, *, looks: bool = False) -> Inspection:
    """Decode a whole file and tell what it is; never raises for what the bytes hold.

    Ordinary JPEGs that `jpeg.walk` finds whole are not decoded by Pillow. `looks` adds the perceptual hash.
    """
    return quick_inspect(data, looks=looks) or inspect_with_pillow(data, looks=looks)


def quick_inspect(data: bytes, *, looks: bool = False) -> Inspection | None:
    """The inspection where no decoder that might crash is needed for it: of no image, and of whole ordinary JPEGs."""
    if not data:
        return Inspection(("empty",), "no bytes")
    name = sniff(data)
    if name is None:
        return Inspection(("not_image",), f"begins with {data[:8]!r}, which no known image format does")
    if name != "JPEG":
        return None
    found = jpeg.walk(data)
    if found is None or found.damage or found.width * found.height > MAX_PIXELS:
        return None
    image = Inspection(width=found.width, height=found.height, mode="RGB", format="JPEG")
    if found.components == 1:
        image = image._replace(mode="L", faults=("grey",))
    if found.orientation != 1:
        image = _turned(image, found.orientation)
    if found.extra_bytes:
        image = image._replace(warnings=("JPEG: extraneous bytes before a marker",))
    return image._replace(look=look_of(Image.open(io.BytesIO(data), formats=["JPEG"]))) if looks else image


def inspect_with_pillow(data: bytes, *, looks: bool = False) -> Inspection:
    """The inspection of an image file by a full decode; never raises for what the bytes hold."""
    name = sniff(data)
    if name is None:
        raise ValueError("no image by its first bytes")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # that is the fault "too_large"
        found = _decode(data, name, looks)
    said = {f"{warning.category.__name__}: {_gist(str(warning.message))}" for warning in caught}
    return found._replace(warnings=tuple(sorted(said)))


def look_of(image: Image.Image) -> int:
    """64 bits that similar pictures share: whether each of 8 x 8 places is darker than its right neighbour (dHash)."""
    image.draft("L", (72, 64))
    values = np.asarray(to_rgb(image).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return int.from_bytes(np.packbits(values[:, :-1] < values[:, 1:]).tobytes(), "big")


def stored_bytes(data: bytes, *, short_side: int | None, convert: Collection[str] | None = None) -> bytes:
    """The bytes that a record holds for a file that is kept.

    A file stays as it is, bit for bit, if it has none of the faults `convert` and its shorter side does not exceed
    `short_side`. Else it becomes RGB JPEG of quality 95 (bicubic, antialiased; alpha dropped as torchvision's loader
    does; 16 bits scaled to 8; turned upright where "orientation" is to be converted). Images are never enlarged. A pure
    function of its arguments and the Pillow version.

    Args:
        convert: `faults.conversions` of the file's faults; none: the default ones of what its bytes show.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    if convert is None:
        convert = conversions(_oddities(image, data, sniff(data)))
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
    """A note where the file name announces another format than the bytes; empty if they agree."""
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
    except UnidentifiedImageError:  # its text holds a memory address, and a manifest must not change between runs
        if name == "JPEG" and jpeg.ends_in_header(data):
            return found._replace(faults=("truncated",), reason="the file ends in its header")
        return found._replace(faults=("corrupt",), reason=f"no {name} header after the magic bytes")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and others
        fault = "truncated" if _TRUNCATED.search(str(error)) or isinstance(error, EOFError) else "corrupt"
        return found._replace(faults=(fault,), reason=_ADDRESS.sub("", f"{type(error).__name__}: {error}"))
    walked = jpeg.walk(data) if name == "JPEG" else None
    if walked is not None and walked.damage:  # libjpeg warns of it, which Pillow does not pass on, and makes up pixels
        return found._replace(faults=("corrupt",), reason=walked.damage)
    try:
        look = look_of(image) if looks or image.mode in ("I", "F") else None
    except ValueError as error:
        return found._replace(faults=("unsupported",), reason=str(error))
    odd = _oddities(image, data, name)
    found = found._replace(faults=tuple(odd), reason="; ".join(filter(None, odd.values())), look=look)
    orientation = _exif_orientation(image)
    return found if orientation == 1 else _turned(found, orientation)


def _turned(found: Inspection, orientation: int) -> Inspection:
    reason = "; ".join(filter(None, (found.reason, f"EXIF orientation {orientation}")))
    return found._replace(faults=(*found.faults, "orientation"), reason=reason)


def _exif_orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF raises whatever its bytes lead to; decoders do not look at it
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _oddities(image: Image.Image, data: bytes, name: str | None) -> dict[str, str]:
    """The faults of a good image that the mode and the format show, each with its reason."""
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
    """The part of a warning that is the same for many files."""
    return re.split(r"[\d(:.]", message, maxsplit=1)[0].strip()[:60]


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; 16 bits are scaled, where Pillow would clip. Raises ValueError for modes without a white level."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # 16-bit grey (mode I in older Pillow); convert("RGB") would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no defined white level")
    return image.convert("RGB")
