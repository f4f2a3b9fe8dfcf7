"""From a folder of images to records: the data stages in one call."""

from __future__ import annotations

from pathlib import Path

from datasets.records import INDEX
from datasets.shard import records_directory, shard
from datasets.validate import validate, validation_directory

from .config import DataConfig

DEFAULTS = DataConfig()


def prepare(data: Path, workspace: Path, settings: DataConfig = DEFAULTS) -> Path:
    """A records directory as it is; a folder of images validated and sharded into the workspace, or found so.

    Raises:
        InputError: the folder cannot be made into records.
    """
    if (data / INDEX).is_file():
        return data
    name, val_share = settings.name, settings.val_share
    validation = validation_directory(workspace, data, name=name, val_share=val_share)
    found = validate(data, validation, name=name, val_share=val_share)
    mb, side = settings.shard_mb, settings.short_side
    out = records_directory(workspace, found.directory, shard_mb=mb, short_side=side, seed=0)
    return shard(found.directory, out, shard_mb=mb, short_side=side, seed=0).directory
