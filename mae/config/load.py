"""Reads, overrides and writes job configs."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Optional, Union

import yaml
from pydantic import ValidationError

from datasets.base.errors import InputError
from mae.config.protocols import protocols
from mae.config.sections import Config, FinetuneConfig, ModelConfig, PretrainConfig


def load_config(path: Union[str, Path], overrides: Iterable[str] = ()) -> Config:
    """Read a YAML job config and apply `key.sub=value` overrides, whose values are YAML.

    Raises:
        InputError: the file is missing or no YAML mapping, a key is unknown, or a value is out of range.
    """
    return parse_config(parse_overrides(overrides, read_mapping(path)), source=path)


def read_mapping(path: Union[str, Path]) -> dict[str, Any]:
    """Return the content of a YAML job config without checking its keys."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, expected="a YAML job config", found="no such file", todo="see configs/ for examples")
    values = _yaml(path.read_bytes(), where=path)
    if not isinstance(values, dict):
        raise InputError(path, expected="a YAML mapping", found=type(values).__name__, todo="see configs/ for examples")
    return values


def parse_overrides(overrides: Iterable[str], values: Optional[dict[str, Any]] = None) -> dict[str, Any]:
    """Return the values of `key.sub=value` texts, which are YAML, as a mapping; added to `values` if that is given."""
    values = {} if values is None else values
    for override in overrides:
        where, section = f"--set {override}", values
        key, separator, text = override.partition("=")
        if not separator or not key:
            todo = "e.g. --set pretrain.epochs=5"
            raise InputError(where, expected="key=value", found=repr(override), todo=todo)
        *parents, last = key.split(".")
        for parent in parents:
            child = section.get(parent)
            if child is None:
                child = section[parent] = {}
            if not isinstance(child, dict):
                raise InputError(where, expected=f"a section named {parent}", found=repr(child), todo="see the config")
            section = child
        section[last] = _yaml(text, where=where)
    return values


def published_recipe(
    task: Literal["pretrain", "finetune"], model: ModelConfig, given: dict[str, Any], *, ranks: int
) -> dict[str, Any]:
    """Return the keys of a config section: those that are `given`, and the published recipe for a model of this size.

    The sections' defaults are for ViT-B. Larger models are fine-tuned for fewer epochs at a larger learning rate
    (facebookresearch/mae, FINETUNE.md). Gradients are accumulated to the published number of images per update.
    """
    larger: dict[str, Any] = {}
    if task == "finetune" and model.embed_dim >= 1024:
        drop_path = 0.2 if model.embed_dim < 1280 else 0.3
        larger = {"epochs": 50, "blr": 1e-3, "layer_decay": 0.75, "drop_path": drop_path}
    defaults, images = (PretrainConfig(), 4096) if task == "pretrain" else (FinetuneConfig(), 1024)
    batch_size = given.get("batch_size", defaults.batch_size)
    accum_iter = max(1, images // (batch_size * ranks)) if isinstance(batch_size, int) and batch_size > 0 else 1
    return {**larger, "accum_iter": accum_iter, **given}


def parse_config(values: dict[str, Any], *, source: object) -> Config:
    """Return the config that a mapping describes. `source` is named in errors.

    Raises:
        InputError: a key is unknown, or a value is of the wrong type or out of range.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        path = error.errors()[0]["loc"]
        if error.errors()[0]["type"] == "extra_forbidden":
            where = f"{source}: {'.'.join(map(str, path))}"
            raise unknown_key(where, str(path[-1]), _keys_of(path[:-1])) from None
        raise invalid(source, error) from None


def invalid(source: object, error: ValidationError) -> InputError:
    """Return the first error of a validation as an InputError."""
    first = error.errors()[0]
    # pydantic adds the branch of a union to the path: `constrained-int`
    key = ".".join(str(part) for part in first["loc"] if "constrained" not in str(part))
    where = f"{source}: {key}" if key else str(source)
    if first["type"] == "value_error":  # a validator's own message has what it expected and got
        found = str(first["ctx"]["error"])
        return InputError(where, expected="values that fit", found=found, todo="correct them")
    return InputError(where, expected=first["msg"], found=repr(first["input"]), todo="correct the value")


def unknown_key(where: str, key: str, known: list[str]) -> InputError:
    """Return the error for a key that is not known, with the most similar known key."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "remove it or correct its name"
    return InputError(where, expected=f"one of {', '.join(known)}", found="an unknown key", todo=hint)


def dump_config(config: Config) -> str:
    """Return a config as YAML, including all defaults."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _yaml(text: Union[str, bytes], *, where: object) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(where, expected="YAML", found=str(error), todo="correct it") from None


def _keys_of(section: tuple[Any, ...]) -> list[str]:
    """Return the keys that a section may have, in alphabetical order; () is the whole config."""
    settings = {name: module.Settings for name, module in protocols().items()}
    model: Any = Config
    for key in section:
        annotation = model.model_fields[key].annotation if key in model.model_fields else settings[key]
        model = next((a for a in typing.get_args(annotation) if hasattr(a, "model_fields")), annotation)
    return sorted({*model.model_fields, *(settings if model is Config else ())})
