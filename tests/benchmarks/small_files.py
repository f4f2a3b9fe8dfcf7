"""Many small JPEG files in class folders, all different: a few hundred pictures, each with a comment of its own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = 300


def small_files(root: Path, count: int, *, classes: int = 1000, val_share: float = 0.04) -> None:
    """Write `count` JPEG files of about 1 KB in <root>/train and <root>/val; the same arguments give the same files."""
    noise = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        out = io.BytesIO()
        small = Image.fromarray(noise.integers(0, 256, (6, 6, 3), np.uint8))
        small.resize((32, 32), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
        pictures.append(out.getvalue())
    held_out = round(1 / val_share)
    for number in range(count):
        split = "val" if number // classes % held_out == 0 else "train"
        folder = root / split / f"n{number % classes:08d}"
        if number // classes in (0, 1):
            folder.mkdir(parents=True, exist_ok=True)
        comment = f"{number:09d}".encode()
        picture = pictures[number % PICTURES]
        segment = b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment
        (folder / f"{number:09d}.JPEG").write_bytes(picture[:2] + segment + picture[2:])
