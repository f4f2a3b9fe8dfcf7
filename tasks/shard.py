"""Stage shard: the valid images as MindRecord files."""

from __future__ import annotations

from pathlib import Path

from datasets.records import Records, load_index
from datasets.shard import records_directory
from datasets.shard import shard as write_shards
from datasets.stage import InputError
from mae.config import DataConfig
from tasks.stage import markdown, stage_task, table

SEED = 0  # of the order in the shards; not the job's, so that jobs of several seeds share their records


@stage_task("write the shards", timeout_hours=48)
def shard(validation_directory: Path, workspace: Path, data: DataConfig) -> Records:
    """Write what a validation found valid as shards into the workspace."""
    mb, side = data.shard_mb, data.short_side
    out = records_directory(workspace, validation_directory, shard_mb=mb, short_side=side, seed=SEED)
    result = write_shards(validation_directory, out, shard_mb=mb, short_side=side, seed=SEED)
    markdown("records", counts(result))
    return result


def intact(result: Records) -> bool:
    """Whether the index is the one that was written and its shards are there; `mae data check` reads them."""
    try:
        index = load_index(result.directory)
    except InputError:
        return False
    files = [result.directory / name for shard in index.all_shards() for name in (shard.file, f"{shard.file}.db")]
    same = index.result(result.directory, reused=result.reused) == result
    return same and all(file.is_file() for file in files)


def counts(result: Records) -> str:
    """What was written, as markdown."""
    rows: list[tuple[object, ...]] = [("train", f"{result.train:,}"), ("val", f"{result.val:,}")]
    return (
        f"`{result.directory}`: {result.shards} shards, {len(result.classes)} classes. "
        f"`mae data check {result.directory}` reads every one.\n\n{table(('split', 'images'), rows)}"
    )
