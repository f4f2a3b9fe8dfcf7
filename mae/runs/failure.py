"""A step whose loss or gradient was not finite: what is kept of it, and going on without float16.

failure/step_<n>/failure.json              where in the training it was, and which sample was where in its batches
                 inputs.safetensors        the arrays of its batches, <rank>.<part>.<argument>
                 model.safetensors         parameters before the step
                 optimizer.safetensors     the optimiser's state before it
                 config.yaml               as the ranks had it
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel
from safetensors.numpy import save_file

from datasets.base.files import atomic_directory, write_json
from datasets.records import sources
from mae.config.sections import Config, PretrainConfig, dump_config
from mae.runs import checkpoint

if TYPE_CHECKING:
    from datasets.batches import Batch
    from mae.training.task import Job, Place

FAILURE, FILE, INPUTS, CONFIG = "failure", "failure.json", "inputs.safetensors", "config.yaml"
FALLBACK = "fallback.json"

logger = logging.getLogger(__name__)


class Sample(BaseModel):
    """One image of a batch."""

    rank: int
    part: int
    place: int
    record: int  # of the training split
    path: str  # of the source file, below the root of the records


def write_failure(
    directory: Path,
    config: Config,
    job: Job,
    weights: Mapping[str, np.ndarray],
    moments: Mapping[str, np.ndarray],
    batches: Mapping[Place, Batch],
    *,
    step: int,
) -> None:
    """Write all that a step had, over all ranks; a reader sees all of it or nothing."""
    records = Path(str(config.data.records))
    samples, arrays = [], {}
    for place, batch in batches.items():
        rows = zip(batch.samples.tolist(), sources(records, "train", batch.samples.tolist()))
        for n, (record, row) in enumerate(rows):
            samples.append(Sample(rank=place.rank, part=place.part, place=n, record=record, path=row.path).model_dump())
        for n, array in enumerate(job.inputs(batch, place)):
            arrays[f"{place.rank}.{place.part}.{n}"] = np.ascontiguousarray(array)
    first = next(iter(batches))
    with atomic_directory(directory) as partial:
        save_file(dict(weights), partial / checkpoint.MODEL, metadata={"maeflow": job.card.model_dump_json()})
        save_file(dict(moments), partial / checkpoint.OPTIMIZER)
        save_file(arrays, partial / INPUTS)
        (partial / CONFIG).write_text(dump_config(config))
        facts = {"step": step, "epoch": first.epoch, "update": first.update, "samples": samples}
        write_json(partial / FILE, facts)


def failures(run_dir: Path) -> dict[str, int]:
    """The failures of a run, by name, and when they were written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in run_dir.glob(f"{FAILURE}/step_*/{FILE}")}


def fall_back(run_dir: Path, config: Config, before: dict[str, int]) -> bool:
    """Whether to start the ranks again with the decoder in float32: once, if the config says so and a step failed.

    Args:
        before: `failures` before the ranks were started.
    """
    new = [name for name, written in failures(run_dir).items() if before.get(name) != written]
    recipe, compute = config.recipe, config.compute
    half = compute.dtype == "float16" or (compute.dtype is None and config.device.target == "Ascend")
    wanted = isinstance(recipe, PretrainConfig) and recipe.on_non_finite == "decoder_float32"
    if not (new and wanted and half) or compute.decoder_float32 or (run_dir / FALLBACK).exists():
        return False
    found = checkpoint.newest(run_dir / "checkpoints")
    back = int(found.name) if found is not None else 0
    write_json(run_dir / FALLBACK, {"decoder": "float32", "failure": new[0], "from_step": back})
    logger.warning("%s: %s was not finite: back to step %d, on with the decoder in float32", run_dir, new[0], back)
    return True


def fallback_step(run_dir: Path) -> int | None:
    """The step from which on the decoder is computed in float32 because of a failure."""
    path = run_dir / FALLBACK
    return json.loads(path.read_text())["from_step"] if path.exists() else None


def fallen_back(config: Config, run_dir: Path) -> Config:
    """The config as the ranks compute it: after a failure with the decoder in float32."""
    if fallback_step(run_dir) is None:
        return config
    compute: Any = config.compute.model_copy(update={"decoder_float32": True})
    return config.model_copy(update={"compute": compute})
