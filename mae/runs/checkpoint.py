"""Checkpoints: a directory per step, written atomically, read only after its digests have been checked.

checkpoints/<step>/model.safetensors       parameters under upstream's state-dict keys; the header names the model
                   ema.safetensors         the same, of the weights' moving average, where the recipe has one
                   optimizer.safetensors   the optimiser's moments and the loss scale, for resuming
                   state.json              step and place in the epoch, what the run depends on, digests of these files
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from datasets.base.digests import file_digest, value_digest
from datasets.base.errors import InputError
from datasets.base.files import atomic_directory, write_json
from mae.config.sections import ModelConfig

MODEL, EMA, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
FOLDER_FILES = (MODEL, "pytorch_model.bin")  # the second in older Hugging Face folders
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"  # what Hugging Face says beside them

logger = logging.getLogger(__name__)


class Conversion(BaseModel):
    """Where converted weights come from and what happened to them on the way."""

    model_config = ConfigDict(extra="forbid")

    source: str  # file name
    sha256: str
    layout: str
    settings: dict[str, Any] = {}  # what the caller told
    assumed: list[str] = []  # what neither the file nor the caller said
    changed: list[str] = []  # tensors with other values or types than in the file
    dropped: list[str] = []  # what the file holds besides
    earlier: Optional[Conversion] = None  # that the source had gone through itself


class ModelCard(BaseModel):
    """What a model file says of itself, in the header of the safetensors file.

    An encoder is a vision transformer up to its final norm, without decoder and head.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    kind: Literal["mae", "classifier", "encoder"]
    model: ModelConfig
    classes: Optional[list[str]] = None  # of a classifier, in label order; none where the file names none
    mask_ratio: Optional[float] = Field(None, gt=0, lt=1)  # of a MAE
    decoder: Optional[Literal["random"]] = None  # of a MAE: not trained, put on an encoder
    conversion: Optional[Conversion] = None  # none: trained here

    @property
    def labels(self) -> list[str]:
        """Names of the classes, or their numbers where nobody named them."""
        return self.classes or [str(number) for number in range(self.model.num_classes or 0)]


class State(BaseModel):
    """Where a run stood when it wrote the checkpoint."""

    model_config = ConfigDict(extra="forbid")

    step: int
    epoch: int  # whole epochs done
    update: int = 0  # updates done in the epoch that has begun
    loss: float
    loss_scale: dict[str, float] = {}  # the loss scale's parameters, which optimizer.safetensors holds too
    inputs: dict[str, Any] = {}  # what the run's result depends on, by key of the config; digests of records and init
    ranks: int = 1
    decoder_float32: bool = False  # as it was computed, be it by the config or after a failure
    digests: dict[str, str]  # SHA-256 by file name, and what `digest` says of state.json's other fields

    def digest(self) -> str:
        """Of all fields but `digests`."""
        return value_digest(self.model_dump(mode="json", exclude={"digests"}))


def save(
    directory: Path,
    weights: Mapping[str, np.ndarray],
    card: ModelCard,
    *,
    moments: Mapping[str, np.ndarray],
    averages: Optional[Mapping[str, np.ndarray]] = None,
    **state: Any,
) -> None:
    """Write a checkpoint; a reader sees all of it or nothing.

    Args:
        averages: replace weights in ema.safetensors.
        state: fields of `State`, but its digests.

    Raises:
        InputError: the disk is full, or otherwise refuses to be written.
    """
    try:
        with atomic_directory(directory) as partial:
            _write(partial, weights, card, moments, averages, state)
    except (OSError, SafetensorError) as error:
        todo = "make room and run again: it goes on from the checkpoint before, which is intact"
        raise InputError(directory, expected="room for a checkpoint", found=str(error), todo=todo) from None


def _write(
    partial: Path,
    weights: Mapping[str, np.ndarray],
    card: ModelCard,
    moments: Mapping[str, np.ndarray],
    averages: Optional[Mapping[str, np.ndarray]],
    state: dict[str, Any],
) -> None:
    save_file(dict(weights), partial / MODEL, metadata={"maeflow": card.model_dump_json()})
    if averages is not None:
        save_file({**weights, **averages}, partial / EMA, metadata={"maeflow": card.model_dump_json()})
    save_file(dict(moments), partial / OPTIMIZER)
    write_state(partial, **state)


def write_state(directory: Path, **state: Any) -> None:
    """state.json of a checkpoint directory, with the digests of what is in it; `state` has the fields of `State`."""
    files = [path for path in sorted(directory.iterdir()) if path.name != STATE]
    described = State(**state, digests={path.name: file_digest(path) for path in files})
    described.digests[STATE] = described.digest()
    write_json(directory / STATE, described.model_dump())


def newest(checkpoints: Path) -> Path | None:
    """The newest intact checkpoint directory; damaged ones are named in the log and passed over."""
    steps = sorted((int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()), reverse=True)
    for step in steps:
        directory = checkpoints / str(step)
        damage = fault(directory)
        if damage is None:
            return directory
        logger.warning("%s: damaged checkpoint passed over: %s", directory, damage)
    return None


def load_state(directory: Path) -> State:
    """state.json of a checkpoint directory."""
    return State.model_validate_json((directory / STATE).read_text())


def load_card(path: Path) -> ModelCard:
    """What a model file says of itself.

    Raises:
        InputError: it is missing, no safetensors file, or none of ours.
    """
    return ModelCard.model_validate(_card_json(path))


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by name.

    Raises:
        InputError: it is missing or no safetensors file.
    """
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None


def model_file(path: Path) -> Path:
    """The model file that a user means: the file itself, a checkpoint directory, a Hugging Face folder, or a run with
    checkpoints.

    Raises:
        InputError: there is none, or it has other content than the checkpoint was written with.
    """
    if path.is_file():
        return _intact(path)
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return _intact(path / name)
    if (path / CONFIG).is_file():
        expected, todo = f"{' or '.join(FOLDER_FILES)} beside config.json", "save it as one file (max_shard_size)"
        raise InputError(path, expected=expected, found="neither", todo=todo)
    checkpoint = newest(path / "checkpoints")
    if checkpoint is None:
        found = "none in it" if path.exists() else "no such file or folder here"
        todo = "give a model file, a checkpoint directory, a run directory or a local Hugging Face folder"
        raise InputError(path, expected="a checkpoint", found=found, todo=todo)
    return checkpoint / MODEL


def _intact(file: Path) -> Path:
    """The file, once it has been compared with the digest in its checkpoint; of other files nobody knows one."""
    try:
        digest = load_state(file.parent).digests.get(file.name)
    except (OSError, ValueError):
        return file
    if digest is not None and file_digest(file) != digest:
        todo = "use another checkpoint; training itself passes over a damaged one"
        raise InputError(file, expected=f"the content of SHA-256 {digest}", found="other content", todo=todo)
    return file


def model_digest(path: Path) -> str:
    """SHA-256 of a model file; in a Hugging Face folder also of what is said beside it, which the model depends on."""
    beside = [path.with_name(name) for name in (CONFIG, PREPROCESSOR) if path.name in FOLDER_FILES]
    digests = [file_digest(path), *(f"{file.name} {file_digest(file)}" for file in beside if file.is_file())]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def run_directory(path: Path) -> Path | None:
    """The run that a model file belongs to, if any: runs/<run>/checkpoints/<step>/model.safetensors."""
    parents = path.resolve().parents
    return parents[2] if len(parents) > 2 and parents[1].name == "checkpoints" else None


def _card_json(path: Path) -> Any:
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("maeflow")
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    if text is None:
        todo = "give a checkpoint that `mae train` wrote"
        raise InputError(path, expected="a model description in the header", found="none", todo=todo)
    return json.loads(text)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(path, expected="a safetensors file", found=str(error), todo="check the path")


def fault(directory: Path) -> str | None:
    """What is wrong with a checkpoint directory, by its digests; none where it is intact."""
    try:
        state = load_state(directory)
        if str(state.step) != directory.name:
            return f"{STATE} is of step {state.step}"
        for name, digest in state.digests.items():
            if not (directory / name).is_file():
                return f"{name} is missing"
            if (state.digest() if name == STATE else file_digest(directory / name)) != digest:
                return f"{name} has other content than was written"
    except (OSError, ValueError) as error:  # unreadable, no UTF-8, no JSON, no state
        return str(error).splitlines()[0]
    return None
