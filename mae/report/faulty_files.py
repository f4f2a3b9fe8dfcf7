"""A few of the files that validation found fault with, as thumbnails for the report."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import NamedTuple, Optional

from PIL import Image, ImageFile

from datasets.images import MAX_PIXELS, to_rgb
from datasets.manifest import FAULTS, ManifestRow, iterate_manifest

EXAMPLES = 4  # of each fault
SIDE = 160  # pixels at most
MOST_BYTES = 20_000_000  # a larger file is named, not opened


class FaultyFile(NamedTuple):
    """One file; `uri` is its thumbnail as far as it decodes, none where nothing of it does or its source is gone."""

    path: str
    status: str
    reason: str
    uri: Optional[str]


class FaultExamples(NamedTuple):
    """Some files with a fault; `meaning` completes "a file that ..."."""

    fault: str
    meaning: str
    files: list[FaultyFile]


def fault_examples(manifest: Path, root: Path) -> list[FaultExamples]:
    """The first files of each fault in a manifest, in the order of the faults' weight; never raises for a bad image."""
    chosen: dict[str, list[ManifestRow]] = {}
    for row in iterate_manifest(manifest):
        for fault in filter(None, row.faults.split(",")):
            rows = chosen.setdefault(fault, [])
            if len(rows) < EXAMPLES:
                rows.append(row)
    return [
        FaultExamples(fault, known.meaning, [_example(root, row) for row in chosen[fault]])
        for fault, known in FAULTS.items()
        if fault in chosen
    ]


def _example(root: Path, row: ManifestRow) -> FaultyFile:
    small_enough = row.bytes <= MOST_BYTES and 0 < (row.width or 0) * (row.height or 0) <= MAX_PIXELS
    return FaultyFile(row.path, row.status, row.reason, _thumbnail(root / row.path) if small_enough else None)


def _thumbnail(path: Path) -> Optional[str]:
    """A JPEG as a data URI; of a truncated image what there is of it."""
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            image = Image.open(file)
            image.draft("RGB", (SIDE, SIDE))
            decode = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = True
            try:
                image.load()
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = decode
            small = to_rgb(image)
            small.thumbnail((SIDE, SIDE))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=80)
    except Exception:  # what decoders raise has no common type; the page then shows the path and the reason alone
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
