"""Finds images in files, folders, http(s) addresses, arrays and Pillow images, and computes a digest of each."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Union
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.images import MAX_BYTES, decode, to_rgb

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
SECONDS = 30.0  # longest wait for an image's server

ImageLike = Union[PathLike, Image.Image, np.ndarray]


class Source(NamedTuple):
    """One image, which is not decoded yet."""

    name: str  # path or address; "image" if it has neither
    stem: str  # stem of the name, for the names of files that are made from the image
    content: Path | bytes | Image.Image
    digest: str  # SHA-256 of the file's bytes, or of mode, size and pixels

    def open(self) -> Image.Image:
        """Return the image as RGB; raise InputError if it is not an image."""
        if isinstance(self.content, Image.Image):
            try:
                return to_rgb(self.content)
            except ValueError as error:
                todo = "scale its values to 8 bits"
                raise InputError(self.name, expected="an image", found=str(error), todo=todo) from None
        return decode(self.content, where=self.name)


def load_image(image: ImageLike) -> Image.Image:
    """Return an image as RGB from a path, an http(s) address, an array uint8 (H, W, 3) or a Pillow image.

    Raises:
        InputError: it cannot be read or is not an image.
    """
    return source(image).open()


def sources(images: Sequence[ImageLike]) -> list[Source]:
    """Return the given images in order. A folder means the image files below it, sorted by name.

    Raises:
        InputError: a folder has no images, or an image cannot be read.
    """
    found: list[Source] = []
    for given in images:
        if isinstance(given, (str, Path)) and not _is_address(given) and Path(given).is_dir():
            paths = sorted(p for p in Path(given).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not paths:
                todo = f"use {', '.join(sorted(SUFFIXES))} files"
                raise InputError(given, expected="images", found="none", todo=todo)
            found += map(source, paths)
        else:
            found.append(source(given))
    return found


def source(image: ImageLike) -> Source:
    """Return one image. An image at an address is downloaded now."""
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if isinstance(image, Image.Image):
        head = f"{image.mode} {image.size}".encode()
        return Source("image", "image", image, hashlib.sha256(head + image.tobytes()).hexdigest())
    if _is_address(image):
        content = _download(str(image))
        stem = PurePosixPath(unquote(urlsplit(str(image)).path)).stem or "image"
        return Source(str(image), stem, content, hashlib.sha256(content).hexdigest())
    if not isinstance(image, (str, Path)):
        todo = "give one of these, or a list of them"
        expected = "a path, an http(s) address, a Pillow image or an array uint8 (H, W, 3)"
        raise InputError("image", expected=expected, found=type(image).__name__, todo=todo)
    path = Path(image)
    try:
        return Source(str(path), path.stem, path, file_digest(path))
    except OSError as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise InputError(path, expected="an image", found=found, todo="correct the path") from None


def _is_address(image: Any) -> bool:
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        found = f"{pixels.dtype} {pixels.shape}"
        todo = "give RGB values between 0 and 255, as uint8; several images as a list"
        raise InputError("image array", expected="uint8 (H, W, 3)", found=found, todo=todo)
    return Image.fromarray(pixels)


def _download(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            content: bytes = answer.read(MAX_BYTES + 1)
            length = answer.headers.get("Content-Length")
    except (OSError, urllib.error.URLError, ValueError) as error:
        todo = "check the address and the network, or give a file"
        raise InputError(address, expected="an image", found=str(error), todo=todo) from None
    if len(content) > MAX_BYTES or (length is not None and len(content) != int(length)):
        expected = f"an image of at most {MAX_BYTES} bytes" + (f", all {length} of them" if length else "")
        raise InputError(address, expected=expected, found=f"{len(content)} bytes", todo="fetch it to a file first")
    return content
