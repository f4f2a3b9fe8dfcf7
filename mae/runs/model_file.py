"""Finds and reads the model file that a user names: a file, a checkpoint, a run or a Hugging Face folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Optional

import numpy as np
from safetensors import SafetensorError, safe_open

from datasets.base.errors import InputError
from mae.model.card import ModelCard
from mae.runs.checkpoint import MODEL, digest_once, load_state, newest

FOLDER_FILES = (MODEL, "pytorch_model.bin")  # the second in older Hugging Face folders
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"  # Hugging Face's description of a model


def model_file(path: Path) -> Path:
    """Return the model file that `path` means: itself, or that of a checkpoint, Hugging Face folder or run.

    Raises:
        InputError: there is none, or its content is not what the checkpoint was written with.
    """
    for file in (path, *(path / name for name in FOLDER_FILES)):
        if file.is_file():
            return _intact(file)
    if (path / CONFIG).is_file():
        expected, todo = f"{' or '.join(FOLDER_FILES)} next to config.json", "save it as one file (max_shard_size)"
        raise InputError(path, expected=expected, found="neither", todo=todo)
    checkpoint = newest(path / "checkpoints")
    if checkpoint is None:
        found = "none in it" if path.exists() else "no such file or folder here"
        todo = "give a model file, a checkpoint directory, a run directory or a local Hugging Face folder"
        raise InputError(path, expected="a checkpoint", found=found, todo=todo)
    return checkpoint / MODEL


def run_directory(model: Path) -> Optional[Path]:
    """Return the run that a model file belongs to, from its path runs/<run>/checkpoints/<step>/<file>; none if none."""
    parents = model.resolve().parents
    return parents[2] if len(parents) > 2 and parents[1].name == "checkpoints" else None


def model_digest(path: Path) -> str:
    """Return the SHA-256 of a model file; in a Hugging Face folder it covers the files that describe the model too."""
    described = [path.with_name(name) for name in (CONFIG, PREPROCESSOR) if path.name in FOLDER_FILES]
    digests = [digest_once(path), *(f"{file.name} {digest_once(file)}" for file in described if file.is_file())]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def load_card(path: Path) -> ModelCard:
    """Return the description of the model in the header of a model file.

    Raises:
        InputError: the file is missing, is not a safetensors file, or was not written by this program.
    """
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("maeflow")
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    if text is None:
        todo = "give a checkpoint that `mae train` wrote"
        raise InputError(path, expected="a model description in the header", found="none", todo=todo)
    return ModelCard.model_validate_json(text)


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """Return all tensors of a safetensors file by name.

    Raises:
        InputError: the file is missing or is not a safetensors file.
    """
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None


def _intact(file: Path) -> Path:
    """Return the file after comparing it with the digest in its checkpoint. Other files have no digest to compare."""
    try:
        digest = load_state(file.parent).digests.get(file.name)
    except (OSError, ValueError):
        return file
    if digest is not None and digest_once(file) != digest:
        todo = "use another checkpoint; training itself skips a damaged one"
        raise InputError(file, expected=f"the content of SHA-256 {digest}", found="other content", todo=todo)
    return file


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(path, expected="a safetensors file", found=str(error), todo="check the path")
