"""mae-prepare-data: from images to validated MindRecord shards. Needs no NPU; `mae-pretrain` reuses the shards."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

import tasks.sample_data
import tasks.shard
import tasks.unpack
import tasks.validate
from datasets.records import Records
from flows import stages as run
from flows.job import REAL_JOB, load_job
from flows.stages import finished, spread, workspace_path


@flow(name="mae-prepare-data")
def mae_prepare_data(
    config: str = REAL_JOB,
    overrides: list[str] = [],  # noqa: B006 (the UI's form shows it; nothing changes it)
    data_root: str | None = None,
    tars: list[str] = [],  # noqa: B006
) -> Records:
    """Validate and shard the images of a config's `data` section.

    Args:
        config: as for `mae-pretrain`, like overrides and data_root.
        tars: archives to unpack first, as for `mae data unpack`. They are unpacked into the data root, or into the
            workspace if there is none.
    """
    data = load_job(config, overrides, data_root).data
    workspace = workspace_path()
    if tars:
        archives = [Path(tar) for tar in tars]
        target = tasks.unpack.images_root(workspace, archives, data)
        root = finished(run.unpack, archives, target).root
    elif data.root is not None:
        root = Path(data.root)
    else:
        root = finished(run.sample_data, workspace).root
    validation = finished(spread(run.validate, data), root, workspace, data)
    return finished(spread(run.shard, data), validation, workspace, data)
