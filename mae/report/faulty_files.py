"""Some of the files in which validation found faults, with thumbnails for the report."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Optional

from PIL import Image, ImageFile

from datasets.images import MAX_PIXELS, to_rgb
from datasets.manifest import FAULTS, ManifestRow, iterate_manifest

EXAMPLES = 4  # of each fault
SIDE = 160  # pixels at most
MOST_BYTES = 20_000_000  # larger files are not opened


class FaultyFile(NamedTuple):
    """A file. `uri` is a thumbnail of what can be decoded; none if nothing can, or if the file is gone."""

    path: str
    status: str
    reason: str
    uri: Optional[str]


def faulty_files(manifest: Path, root: Path) -> dict[str, list[FaultyFile]]:
    """Return the first files below `root` of each fault in a manifest, the most serious fault first."""
    found = first_rows(manifest, FAULTS, EXAMPLES)
    return {name: [_faulty_file(root, row) for row in rows] for name, rows in found.items() if rows}


def first_rows(manifest: Path, faults: Iterable[str], most: int) -> dict[str, list[ManifestRow]]:
    """Return the first `most` rows of each of these faults. The manifest is read until there are enough."""
    found: dict[str, list[ManifestRow]] = {name: [] for name in faults}
    wanted = set(found)
    for row in iterate_manifest(manifest):
        for name in wanted.intersection(row.faults.split(",")):
            found[name].append(row)
            if len(found[name]) == most:
                wanted.remove(name)
        if not wanted:
            break
    return found


def _faulty_file(root: Path, row: ManifestRow) -> FaultyFile:
    small_enough = row.bytes <= MOST_BYTES and 0 < (row.width or 0) * (row.height or 0) <= MAX_PIXELS
    return FaultyFile(row.path, row.status, row.reason, _thumbnail(root / row.path) if small_enough else None)


def _thumbnail(path: Path) -> Optional[str]:
    """Return a JPEG as a data URI; of a truncated image, the part that can be decoded."""
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            image = Image.open(file)
            image.draft("RGB", (SIDE, SIDE))
            small = to_rgb(image)
            small.thumbnail((SIDE, SIDE))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=80)
    except Exception:  # decoders raise errors of many types; the page then shows only the path and the reason
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
