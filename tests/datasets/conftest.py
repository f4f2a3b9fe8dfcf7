"""Real image files of every kind, made on the spot."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.manifest import ManifestRow, iterate_manifest

os.environ.setdefault("GLOG_v", "3")  # MindSpore logs below errors are noise here


def picture(seed: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A smooth RGB picture that no other seed gives."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / 16
    waves = [np.sin(x * (1 + seed % 3) + seed), np.cos(y + seed * 0.7), np.sin(x + y * (1 + seed % 5) + seed)]
    return Image.fromarray(((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8))


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def _grey16(seed: int) -> bytes:
    values = np.asarray(picture(seed).convert("L")).astype(np.uint16) * 257
    return encode(Image.fromarray(values), "PNG")


def read_manifest(path: Path) -> list[ManifestRow]:
    return list(iterate_manifest(path))


KINDS: dict[str, Callable[[int], bytes]] = {
    "rgb.jpg": lambda seed: encode(picture(seed), "JPEG", quality=90),
    "grey.jpg": lambda seed: encode(picture(seed).convert("L"), "JPEG", quality=90),
    "cmyk.jpg": lambda seed: encode(picture(seed).convert("CMYK"), "JPEG", quality=90),
    "progressive.jpg": lambda seed: encode(picture(seed), "JPEG", progressive=True),
    "rgb.png": lambda seed: encode(picture(seed), "PNG"),
    "grey.png": lambda seed: encode(picture(seed).convert("L"), "PNG"),
    "alpha.png": lambda seed: encode(picture(seed).convert("RGBA"), "PNG"),
    "grey_alpha.png": lambda seed: encode(picture(seed).convert("LA"), "PNG"),
    "palette.png": lambda seed: encode(picture(seed).convert("P"), "PNG"),
    "bilevel.png": lambda seed: encode(picture(seed).convert("1"), "PNG"),
    "grey16.png": _grey16,
    "transparent_colour.png": lambda seed: encode(picture(seed), "PNG", transparency=(1, 2, 3)),
    "picture.gif": lambda seed: encode(picture(seed), "GIF"),
    "picture.bmp": lambda seed: encode(picture(seed), "BMP"),
    "picture.webp": lambda seed: encode(picture(seed), "WEBP", lossless=True),
    "picture.tiff": lambda seed: encode(picture(seed), "TIFF"),
    "float.tiff": lambda seed: encode(picture(seed).convert("F"), "TIFF"),
    "truncated.jpg": lambda seed: KINDS["rgb.jpg"](seed)[:-200],
    "no_end.jpg": lambda seed: KINDS["rgb.jpg"](seed)[:-2],
    "head_only.jpg": lambda seed: KINDS["rgb.jpg"](seed)[:20],
    "truncated.png": lambda seed: KINDS["rgb.png"](seed)[:-200],
    "no_end.png": lambda seed: KINDS["rgb.png"](seed)[:-12],
    "damaged.png": lambda seed: KINDS["rgb.png"](seed)[:200] + b"\0" * 50 + KINDS["rgb.png"](seed)[250:],
    "text.jpg": lambda seed: f"this is no picture {seed}".encode(),
    "empty.jpg": lambda _: b"",
    "bomb.png": lambda _: _png_header(60_000, 60_000),
    "large.png": lambda _: _png_header(10_000, 10_000),
}


def _png_header(width: int, height: int) -> bytes:
    """A grey PNG that announces many pixels and holds few."""
    small = encode(Image.new("L", (1, 1)), "PNG")
    header = small[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]


@pytest.fixture(scope="session")
def image_bytes() -> Callable[..., bytes]:
    """image_bytes(kind, seed=0): the content of a file of one of KINDS."""
    return lambda kind, seed=0: KINDS[kind](seed)


@pytest.fixture(scope="session")
def write_tree() -> Callable[[Path, dict[str, object]], Path]:
    """write_tree(root, {"train/cat/a.jpg": kind | (kind, seed) | bytes | None for an empty folder}) -> root."""

    def write(root: Path, files: dict[str, object]) -> Path:
        for number, (name, content) in enumerate(files.items()):
            path = root / name
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                content = KINDS[content](number + 1)
            elif isinstance(content, tuple):
                content = KINDS[content[0]](content[1])
            assert isinstance(content, bytes)
            path.write_bytes(content)
        return root

    return write


@pytest.fixture(scope="session")
def small_tree(write_tree: Callable[[Path, dict[str, object]], Path]) -> Callable[[Path], Path]:
    """small_tree(root): 2 classes of uneven size, 7 training and 4 validation images, two of them to be converted."""
    names = {f"train/cat/{i}.jpg": "rgb.jpg" for i in range(4)} | {f"train/dog/{i}.png": "grey.png" for i in range(2)}
    names |= {"train/dog/odd.gif": "picture.gif", "val/cat/odd.jpg": "cmyk.jpg"}
    names |= {f"val/dog/{i}.jpg": "grey.jpg" for i in range(3)}
    return lambda root: write_tree(root, names)
