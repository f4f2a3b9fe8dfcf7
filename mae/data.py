"""Makes records of a folder of images: all data stages in one call."""

from __future__ import annotations

from pathlib import Path

from datasets.manifest import parse_policy
from datasets.records import INDEX
from datasets.sharding import records_directory, write_records
from datasets.validation import ValidationOptions, validate
from mae.config.sections import DataConfig

DEFAULTS = DataConfig()


def prepare(data: Path, workspace: Path, settings: DataConfig = DEFAULTS) -> Path:
    """Return the records of `data`: itself if it has records, else its images, validated and sharded in the workspace.

    Finished stages are verified and not repeated.

    Raises:
        InputError: records cannot be made of the folder.
    """
    if (data / INDEX).is_file():
        return data
    name, options = settings.name, validation_options(settings)
    validation = options.directory(workspace, data, name=name)
    found = validate(data, validation, name=name, options=options)
    mb, side = settings.shard_mb, settings.short_side
    out = records_directory(workspace, found.directory, shard_mb=mb, short_side=side, seed=0)
    return write_records(found.directory, out, shard_mb=mb, short_side=side, seed=0).directory


def validation_options(settings: DataConfig) -> ValidationOptions:
    """Return the options of the validation that a config asks for.

    Raises:
        InputError: its policy has an unknown fault, or an action that the fault does not allow.
    """
    return ValidationOptions(
        val_share=settings.val_share,
        policy=parse_policy(f"{fault}={action}" for fault, action in settings.policy.items()),
        expect=settings.expect,
        near_duplicates=settings.near_duplicates,
        min_side=settings.min_side,
    )
