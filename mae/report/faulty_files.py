"""The files in which validation found faults: as thumbnails for the report, and as a table on the console."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Optional

from PIL import Image, ImageFile
from rich.console import Console
from rich.table import Table

from datasets.images import MAX_PIXELS, to_rgb
from datasets.manifest import FAULTS, MANIFEST, ManifestRow, iterate_manifest
from datasets.validation import Validation

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
    found: dict[str, list[FaultyFile]] = {}
    for name, rows in _first_rows(manifest, FAULTS, EXAMPLES).items():
        for row in rows:
            small_enough = row.bytes <= MOST_BYTES and 0 < (row.width or 0) * (row.height or 0) <= MAX_PIXELS
            uri = _thumbnail(root / row.path) if small_enough else None
            found.setdefault(name, []).append(FaultyFile(row.path, row.status, row.reason, uri))
    return found


def print_faults(result: Validation) -> None:
    """Print to stderr each fault, the number of its files, what is done with them, and the path of the first."""
    console = Console(stderr=True)
    if result.found:
        table = Table(title=f"{result.root}: {result.train:,} + {result.val:,} images kept", title_justify="left")
        table.add_column("fault: a file that ...")
        table.add_column("files", justify="right")
        table.add_column("action")
        table.add_column("first", overflow="fold")
        found = [name for name in FAULTS if name in result.found]
        for name, rows in _first_rows(result.directory / MANIFEST, found, 1).items():
            count, first = f"{result.found[name]:,}", rows[0].path if rows else ""
            table.add_row(f"[bold]{name}[/]: {FAULTS[name].meaning}", count, result.policy[name], first)
        console.print(table)
    for warning, files in result.warnings.items():
        console.print(f"{files:,} files: warning of the decoder: {warning}", markup=False)


def _first_rows(manifest: Path, faults: Iterable[str], most: int) -> dict[str, list[ManifestRow]]:
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
