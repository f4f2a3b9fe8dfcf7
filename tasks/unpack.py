"""Stage unpack: from archives to class folders of images."""

from __future__ import annotations

from pathlib import Path

from datasets.base.digests import value_digest
from datasets.unpacking import Unpacked, unpack_archives
from mae.config import DataConfig
from tasks.stage import markdown, stage_task


def images_root(workspace: Path, tars: list[Path], data: DataConfig) -> Path:
    """Return the folder to unpack to: the config's data root, or one in the workspace named after the archives."""
    if data.root is not None:
        return Path(data.root)
    names = sorted(str(tar.absolute()) for tar in tars)
    return workspace / "datasets" / f"{data.name or 'images'}-{value_digest(names)}"


@stage_task("unpack the archives", timeout_hours=48)
def unpack(tars: list[Path], root: Path) -> Unpacked:
    """Unpack archives of images into the root. Published archives are checked by their MD5."""
    result = unpack_archives(tars, root)
    rows = [("split", "images"), ("train", f"{result.train:,}"), ("val", f"{result.val:,}")]
    rows += [("left out, outside the class folders", f"{result.left_out:,}")] if result.left_out else []
    markdown("unpacked", f"`{result.root}`: {result.classes:,} class folders.", *rows)
    return result
