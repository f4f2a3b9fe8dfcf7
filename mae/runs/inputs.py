"""What the result of a run depends on: names its directory, and tells what changed since a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets.records import load_index
from mae.config.sections import Config, FinetuneConfig, LinprobeConfig, Recipe
from mae.runs import checkpoint

# Neither these, nor where the data lies and what prepares it, change a result; the number of ranks, their batches and
# how many are accumulated do by rounding only, as long as the global batch is the same. Where images of a rank's batch
# meet, its size matters; which of the global batch meet there is chance, and may change with the number of ranks.
IMMATERIAL = (
    "batch_size",
    "accum_iter",
    "checkpoint_epochs",
    "checkpoint_steps",
    "keep_checkpoints",
    "keep_epochs",
    "on_non_finite",
    "eval_epochs",
    "eval_protocols",
    "eval_images",
)


def run_inputs(config: Config) -> dict[str, Any]:
    """Everything that changes the run's result, by key of the config; `global batch`, and digests of files."""
    records = Path(str(config.data.records))
    values = config.model_dump(mode="json", include={"task", "seed", "model", "compute", config.task})
    section = values[config.task]
    for key in IMMATERIAL:
        if key != "batch_size" or not _mixes(config.recipe):
            section.pop(key, None)
    found: dict[str, Any] = {"device.target": config.device.target, "global batch": global_batch(config)}
    for key, value in values.items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    found["records"] = load_index(records).result(records, reused=True).digest
    if config.init is not None:
        found["init"] = checkpoint.model_digest(checkpoint.model_file(Path(config.init)))
    return found


def _mixes(recipe: Recipe) -> bool:
    """Whether an image's part in the loss depends on the others in its rank's batch: mixed with them, normalised."""
    if isinstance(recipe, FinetuneConfig):
        return recipe.mixup > 0 or recipe.cutmix > 0
    return isinstance(recipe, LinprobeConfig)


def global_batch(config: Config) -> int:
    """Images between two updates, over all ranks."""
    return config.recipe.batch_size * config.recipe.accum_iter * config.device.ranks


def differences(written: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Each key that differs, with both values; empty where none does."""
    keys = [key for key in {**written, **wanted} if written.get(key) != wanted.get(key)]
    return ", ".join(f"{key} {wanted.get(key)} where the checkpoint has {written.get(key)}" for key in keys)
