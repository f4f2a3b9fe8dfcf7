"""The failures of a run: steps whose loss or gradient was not finite, and the fall-back to a float32 decoder.

failure/step_<n>/failure.json              step, place in the training, and which sample was where in its batches
                 inputs.safetensors        the arrays of its batches, <rank>.<part>.<argument>
                 model.safetensors         parameters before the step
                 optimizer.safetensors     the optimiser's state before the step
                 config.yaml               the config that the ranks used
"""

from __future__ import annotations

import logging

from datasets.base.files import write_json
from mae.config.sections import PretrainConfig
from mae.runs.run import FALLBACK, Fallback, Run

FAILURE, FILE = "failure", "failure.json"

logger = logging.getLogger(__name__)


def failures(run: Run) -> dict[str, int]:
    """Return the modification time in nanoseconds of each failure of a run, by the name of its directory."""
    return {path.parent.name: path.stat().st_mtime_ns for path in run.directory.glob(f"{FAILURE}/step_*/{FILE}")}


def fall_back(run: Run, before: dict[str, int]) -> bool:
    """Return whether the ranks should start again with a float32 decoder, and record that in fallback.json.

    This happens once per run, if the config asks for it and a step of a float16 computation failed.

    Args:
        before: `failures` before the ranks were started.
    """
    new = [name for name, written in failures(run).items() if before.get(name) != written]
    recipe, compute = run.config.recipe, run.config.compute
    half = compute.dtype == "float16" or (compute.dtype is None and run.config.device.target == "Ascend")
    wanted = isinstance(recipe, PretrainConfig) and recipe.on_non_finite == "decoder_float32"
    if not (new and wanted and half) or compute.decoder_float32 or run.fallback is not None:
        return False
    newest = run.newest()
    fallback = Fallback(failure=new[0], from_step=int(newest.name) if newest is not None else 0)
    write_json(run.directory / FALLBACK, fallback.model_dump())
    message = "%s: %s was not finite: returning to step %d and continuing with the decoder in float32"
    logger.warning(message, run.directory, fallback.failure, fallback.from_step)
    return True
