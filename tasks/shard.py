"""Stage shard: write the valid images as MindRecord files, in groups of shards that several machines can share."""

from __future__ import annotations

from pathlib import Path

from datasets.base.errors import InputError
from datasets.base.parallel import apart
from datasets.records import Records, load_index
from datasets.sharding import ShardGroup, ShardPlan, records_directory
from mae.config import DataConfig
from tasks.stage import markdown, stage_task

SEED = 0  # of the images' order in the shards; not the job's seed, so that jobs with different seeds share records


def directory(validation_directory: Path, workspace: Path, data: DataConfig) -> Path:
    """Return the directory for the records of a validation."""
    mb, side = data.shard_mb, data.short_side
    return records_directory(workspace, validation_directory, shard_mb=mb, short_side=side, seed=SEED)


@stage_task("plan the shards", timeout_hours=4)
def plan(validation_directory: Path, out: Path, data: DataConfig) -> ShardPlan:
    """Return the groups of shards to write."""
    return ShardPlan.make(validation_directory, out, shard_mb=data.shard_mb, short_side=data.short_side, seed=SEED)


@stage_task("write shards", run_name="write {group.label}", timeout_hours=24)
def write(group: ShardGroup) -> int:
    """Write a group of shards in a separate process, unless it is finished, and return their number."""
    return apart(ShardGroup.write, group)


@stage_task("put the shards in place", timeout_hours=4)
def conclude(found: ShardPlan) -> Records:
    """Write the index of the shards."""
    result = found.conclude()
    text = (
        f"`{result.directory}`: {result.shards} shards, {len(result.classes)} classes. "
        f"`mae data check {result.directory}` reads every one."
    )
    markdown("records", text, ("split", "images"), ("train", f"{result.train:,}"), ("val", f"{result.val:,}"))
    return result


def intact(result: Records) -> bool:
    """Return whether the index is unchanged and its files exist. (`mae data check` also reads the files.)"""
    try:
        index = load_index(result.directory)
    except InputError:
        return False
    same = index.result(result.directory, reused=result.reused) == result
    return same and all((result.directory / file).is_file() for file in index.digests())
