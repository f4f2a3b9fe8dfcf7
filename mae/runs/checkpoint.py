"""Checkpoints: one directory per step, written atomically and checked against its digests before it is used.

checkpoints/<step>/model.safetensors       parameters under upstream's state-dict keys; the header describes the model
                   ema.safetensors         the same for the weights' moving average, if the recipe has one
                   optimizer.safetensors   the optimiser's moments and the loss scale, for resuming
                   state.json              step, place in the epoch, the run's inputs, digests of these files
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.numpy import save_file

from datasets.base.digests import file_digest, value_digest
from datasets.base.errors import InputError
from datasets.base.files import atomic_directory, write_json
from mae.model.card import ModelCard

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"

logger = logging.getLogger(__name__)
_digests: dict[tuple[Any, ...], str] = {}  # of this process, by path and file status


class State(BaseModel, extra="forbid"):
    """state.json: where the run was when it wrote the checkpoint."""

    step: int
    epoch: int  # completed epochs
    update: int = 0  # completed updates of the current epoch
    loss: float
    loss_scale: dict[str, float] = {}  # parameters of the loss scale, which are in optimizer.safetensors as well
    inputs: dict[str, Any] = {}  # see `mae.runs.inputs`
    ranks: int = 1
    mindspore: Optional[str] = None  # the release that computed it; none: written before this was recorded
    decoder_float32: bool = False  # whether the decoder was computed in float32, by config or after a failure
    digests: dict[str, str]  # SHA-256 by file name; for state.json that of its other fields

    def digest(self) -> str:
        """Return the digest of all fields except `digests`."""
        unrecorded = {"mindspore"} if self.mindspore is None else set()
        return value_digest(self.model_dump(mode="json", exclude={"digests"} | unrecorded))


def save(
    directory: Path,
    weights: Mapping[str, np.ndarray],
    card: ModelCard,
    *,
    moments: Mapping[str, np.ndarray],
    averages: Optional[Mapping[str, np.ndarray]] = None,
    **state: Any,
) -> None:
    """Write a checkpoint. A reader sees all of it or nothing.

    Args:
        weights: parameters by name.
        moments: the optimiser's state by name.
        averages: moving averages by name; they replace the weights of these names in ema.safetensors.
        state: the fields of `State` except its digests.

    Raises:
        InputError: the disk is full or cannot be written.
    """
    metadata = {"maeflow": card.model_dump_json()}
    try:
        with atomic_directory(directory) as partial:
            save_file(dict(weights), partial / MODEL, metadata=metadata)
            if averages is not None:
                save_file({**weights, **averages}, partial / EMA, metadata=metadata)
            save_file(dict(moments), partial / OPTIMIZER)
            write_state(partial, **state)
    except (OSError, SafetensorError) as error:
        todo = "free space and run again: training continues from the checkpoint before this one, which is intact"
        raise InputError(directory, expected="room for a checkpoint", found=str(error), todo=todo) from None


def write_state(directory: Path, **state: Any) -> None:
    """Write state.json with the fields in `state` and the digests of the other files of a checkpoint directory."""
    files = [path for path in sorted(directory.iterdir()) if path.name != STATE]
    described = State(**state, digests={path.name: file_digest(path) for path in files})
    described.digests[STATE] = described.digest()
    write_json(directory / STATE, described.model_dump())


def newest(checkpoints: Path) -> Optional[Path]:
    """Return the newest intact checkpoint directory. Damaged ones are skipped and named in the log."""
    steps = sorted((int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()), reverse=True)
    for step in steps:
        directory = checkpoints / str(step)
        damage = fault(directory)
        if damage is None:
            return directory
        logger.warning("%s: skipping a damaged checkpoint: %s", directory, damage)
    return None


def fault(directory: Path) -> Optional[str]:
    """Return what is wrong with a checkpoint directory; none if all its digests are right."""
    try:
        state = load_state(directory)
        if str(state.step) != directory.name:
            return f"{STATE} is of step {state.step}"
        for name, digest in state.digests.items():
            if not (directory / name).is_file():
                return f"{name} is missing"
            if (state.digest() if name == STATE else digest_once(directory / name)) != digest:
                return f"{name} has other content than was written"
    except (OSError, ValueError) as error:  # unreadable, no UTF-8, no JSON, no state
        return str(error).splitlines()[0]
    return None


def load_state(directory: Path) -> State:
    """Return state.json of a checkpoint directory."""
    return State.model_validate_json((directory / STATE).read_text())


def digest_once(path: Path) -> str:
    """Return the SHA-256 of a file, which this process reads once as long as the file does not change.

    Size, inode, and the times of the last change of content and of status recognise a changed file.
    """
    found = path.stat()
    key = (str(path.resolve()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if key not in _digests:
        _digests[key] = file_digest(path)
    return _digests[key]
