"""Reads and writes weight files of torch, safetensors and MindSpore.

No code in a file is executed: torch files are read with `weights_only`. The only class that is allowed apart from
tensors is `argparse.Namespace`, because upstream stores its arguments in one.
"""

from __future__ import annotations

import io
import pickle
import re
import uuid
import warnings
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Optional

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from datasets.base.errors import InputError
from datasets.base.files import atomic_write
from mae.model.card import ModelCard

TORCH, SAFETENSORS, MINDSPORE = (".pth", ".pt", ".bin"), ".safetensors", ".ckpt"
FORMATS = ", ".join([*TORCH, SAFETENSORS, MINDSPORE])
CARD = "maeflow"  # key of the card in all formats
_NESTS = ("model", "state_dict", "module")  # keys under which training scripts store the weights

# Parameters in training checkpoints of MindFormers that are not weights
_MOMENTS = ("adam_m.", "adam_v.", "moment1.", "moment2.")
_COUNTERS = {
    *("beta1_power", "beta2_power", "global_step", "current_iterator_step", "last_overflow_iterator_step"),
    *("scale_sense", "learning_rate", "epoch_num", "step_num", "loss_scale"),
}


class WeightFile(NamedTuple):
    """The content of a file."""

    weights: dict[str, np.ndarray]
    card: Optional[ModelCard] = None
    args: Mapping[str, Any] = MappingProxyType({})  # arguments of the training script, in upstream's files
    changed: tuple[str, ...] = ()  # tensors with another type than in the file
    dropped: tuple[str, ...] = ()  # entries that are not weights


def read_file(path: Path) -> WeightFile:
    """Return the content of a weight file. Types of 16 bits become float32, which is exact.

    Raises:
        InputError: the file is damaged, its suffix is unknown, or it contains code.
    """
    readers = {SAFETENSORS: _read_safetensors, MINDSPORE: _read_mindspore, **dict.fromkeys(TORCH, _read_torch)}
    if path.suffix not in readers:
        found = path.suffix or "no suffix"
        raise InputError(path, expected=f"one of {FORMATS}", found=found, todo="rename the file")
    file = readers[path.suffix](path)
    weights, changed = dict(file.weights), list(file.changed)
    for name, value in weights.items():  # integers (counters) stay
        if np.issubdtype(value.dtype, np.floating) and value.dtype != np.float32:
            changed.append(f"{name}: {value.dtype} -> float32")
            weights[name] = value.astype(np.float32)
    broken = [name for name, value in weights.items() if value.dtype == np.float32 and not np.isfinite(value).all()]
    if broken:
        found, todo = f"NaN or infinity in {', '.join(broken)}", "give a checkpoint from before the run diverged"
        raise InputError(path, expected="finite weights", found=found, todo=todo)
    return file._replace(weights=weights, changed=tuple(changed))


def write_file(path: Path, weights: Mapping[str, np.ndarray], card: ModelCard) -> None:
    """Write weights and card atomically, in the format of the path's suffix.

    Raises:
        InputError: the suffix is unknown, or torch is needed and not installed.
    """
    text = card.model_dump_json()
    whole = {name: np.asarray(value, order="C") for name, value in weights.items()}
    if path.suffix == SAFETENSORS:
        atomic_write(path, save(whole, metadata={CARD: text, "format": "pt"}))
    elif path.suffix in TORCH:
        _write_torch(path, whole, text)
    elif path.suffix == MINDSPORE:
        _write_mindspore(path, whole, text)
    else:
        todo = "use the suffix of a format, or none to write a Hugging Face folder"
        raise InputError(path, expected=f"one of {FORMATS}", found=path.suffix, todo=todo)


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            card = _card((file.metadata() or {}).get(CARD), path)
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
            weights = {name: file.get_tensor(name) for name in names if kinds[name] != "BF16"}
        for name, entry in deserialize(path.read_bytes()) if len(weights) < len(names) else ():
            if name not in weights:  # NumPy has no bfloat16, which is the upper half of a float32
                halves = np.frombuffer(entry["data"], "<u2").astype(np.uint32) << 16
                weights[name] = halves.view(np.float32).reshape(entry["shape"])
    except (OSError, SafetensorError) as error:
        todo = "check the path, or fetch the file again"
        raise InputError(path, expected="a safetensors file", found=str(error), todo=todo) from None
    return WeightFile(weights, card, changed=tuple(f"{n}: bfloat16 -> float32" for n in names if kinds[n] == "BF16"))


def _read_torch(path: Path) -> WeightFile:
    torch = _torch(path)
    try:
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        todo = "save the state dict alone: torch.save(model.state_dict(), path)"
        names = re.findall(r"GLOBAL (\S+)", str(error))  # the rest of torch's text advises to execute the file
        found = f"other objects: {', '.join(names)}" if names else "a pickle that may contain code, or another format"
        raise InputError(path, expected="only tensors", found=found, todo=todo) from None
    except Exception as error:  # torch's unpickler raises KeyError, IndexError and others for files of other formats
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(path, expected="a torch file", found=found, todo="fetch it again") from None
    if not isinstance(content, Mapping):
        todo = "save the state dict: torch.save(model.state_dict(), path)"
        raise InputError(path, expected="a state dict", found=type(content).__name__, todo=todo)
    nest = next((key for key in _NESTS if isinstance(content.get(key), Mapping)), None)
    state = content if nest is None else content[nest]
    dropped = () if nest is None else tuple(str(key) for key in content if key not in (nest, "args", CARD))
    weights: dict[str, np.ndarray] = {}
    changed: list[str] = []
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            todo = "give a checkpoint whose model is a state dict"
            raise InputError(f"{path}: {name}", expected="a tensor", found=type(value).__name__, todo=todo)
        if value.dtype == torch.bfloat16:
            changed.append(f"{name}: bfloat16 -> float32")
            value = value.float()
        weights[str(name).removeprefix("module.")] = value.detach().numpy()
    args = content.get("args") if nest is not None else None
    card = content.get(CARD) if nest is not None else None
    return WeightFile(
        weights,
        _card(card, path),
        dict(vars(args)) if isinstance(args, Namespace) else dict(args or {}),
        tuple(changed),
        dropped,
    )


def _read_mindspore(path: Path) -> WeightFile:
    import mindspore as ms

    try:
        content = ms.load_checkpoint(str(path))
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(path, expected="a MindSpore checkpoint", found=found, todo="fetch it again") from None
    card = content.pop(CARD, None)
    dropped = tuple(name for name in content if name.startswith(_MOMENTS) or name in _COUNTERS)
    weights: dict[str, np.ndarray] = {}
    changed: list[str] = []
    for name in content.keys() - set(dropped):
        value = content[name]
        if getattr(value, "dtype", None) == ms.bfloat16:
            changed.append(f"{name}: bfloat16 -> float32")
            value = value.astype(ms.float32)
        weights[name] = value.asnumpy() if hasattr(value, "asnumpy") else np.asarray(value)
    return WeightFile(weights, _card(card, path), {}, tuple(changed), dropped)


def _write_torch(path: Path, weights: Mapping[str, np.ndarray], card: str) -> None:
    torch = _torch(path)
    content = io.BytesIO()
    torch.save({"model": {name: torch.from_numpy(value) for name, value in weights.items()}, CARD: card}, content)
    atomic_write(path, content.getvalue())


def _write_mindspore(path: Path, weights: Mapping[str, np.ndarray], card: str) -> None:
    import mindspore as ms

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:8]}{MINDSPORE}")  # MindSpore needs the suffix
    try:
        entries = [{"name": name, "data": ms.Tensor(value)} for name, value in weights.items()]
        ms.save_checkpoint(entries, str(partial), append_dict={CARD: card})
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _card(text: object, path: Path) -> ModelCard | None:
    if text is None:
        return None
    try:
        return ModelCard.model_validate_json(str(text))
    except ValueError as error:
        found, todo = str(error).splitlines()[0], "convert the original file again"
        raise InputError(path, expected="a model card of this version", found=found, todo=todo) from None


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        todo = "run pip install -e '.[torch]' -c .venv/constraints.txt in the folder of maeflow"
        raise InputError(path, expected="torch, to read or write this file", found="no torch", todo=todo) from None
    return torch
