"""The inputs of a run: everything that its result depends on. They name its directory and say what has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets.records import load_index
from mae.config.sections import Config, FinetuneConfig, LinearConfig, Recipe
from mae.runs.model_file import model_digest, model_file

# Keys that do not change the result of a run. Ranks, batch size and accumulation change it only by rounding, as long as
# the global batch size stays the same. If images of a rank's batch are mixed with each other, the batch size matters.
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
    """Return the inputs of a config's run: values by config key, the global batch size, and digests of files."""
    records = Path(str(config.data.records))
    values = config.model_dump(mode="json", include={"task", "seed", "model", "compute", config.task})
    section = values[config.task]
    for key in IMMATERIAL:
        if key != "batch_size" or not _mixes(config.recipe):
            section.pop(key, None)
    images = config.recipe.batch_size * config.recipe.accum_iter * config.device.ranks  # per update
    found: dict[str, Any] = {"device.target": config.device.target, "global batch": images}
    for key, value in values.items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    found["records"] = load_index(records).result(records, reused=True).digest
    if config.init is not None:
        found["init"] = model_digest(model_file(Path(config.init)))
    return found


def differences(written: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Return each key whose values differ, with both values, as one line; an empty text if none differs."""
    keys = [key for key in {**written, **wanted} if written.get(key) != wanted.get(key)]
    return ", ".join(f"{key} {wanted.get(key)} where the checkpoint has {written.get(key)}" for key in keys)


def _mixes(recipe: Recipe) -> bool:
    """Return whether an image's loss depends on the other images in its rank's batch: by mixing or normalising."""
    if isinstance(recipe, FinetuneConfig):
        return recipe.mixup > 0 or recipe.cutmix > 0
    return isinstance(recipe, LinearConfig)
