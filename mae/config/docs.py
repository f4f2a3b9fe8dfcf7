"""Describes every config key as Markdown.

python -m mae.config.docs > docs/config.md
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Iterator
from typing import Any, Optional

from pydantic import BaseModel

from mae.config.protocols import protocols
from mae.config.sections import Config, Section, TrainingSection

HEAD = """\
# Config keys

This file is generated. To write it again: `python -m mae.config.docs > docs/config.md`.

A job config is a YAML file; [configs/](../configs) has one for each published recipe. `--set key.sub=value` changes a
value on the command line. The value is YAML, e.g. `--set pretrain.epochs=5` or `--set pretrain.betas=[0.9,0.95]`.
An unknown key is an error, which names the most similar known key. Every run writes its complete config, with all
defaults, into `config.yaml`.

The descriptions write "none" for YAML's `null`.
"""
TYPES = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "null": "`null`"}
BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}

Schema = dict[str, Any]  # JSON schema of one value


def markdown() -> str:
    """Return the description of all keys: of the config, of its sections, then of the protocols' sections.

    Raises:
        ValueError: a section or a key has no description.
    """
    sections = {name: kind for name in Config.model_fields if (kind := section_type(Config, name)) is not None}
    for name, module in protocols().items():
        sections.setdefault(name, module.Settings)
    described = [description(name, kind) for name, kind in sections.items()]
    return "\n".join([HEAD, description("The config itself", Config), *described])


def description(title: str, kind: type[BaseModel]) -> str:
    """Return a heading, the docstring of a section, and a table with one row per key.

    Raises:
        ValueError: the section has no docstring, or one of its keys no description.
    """
    if not kind.__doc__ or kind.__doc__ == BaseModel.__doc__:
        raise ValueError(f"{kind.__name__}: expected a docstring, found none; it becomes the text of docs/config.md")
    lines = [f"## {title}", "", inspect.cleandoc(kind.__doc__), ""]
    if kind.model_fields:
        lines += ["| key | type | default | range | meaning |", "|---|---|---|---|---|", *_rows(kind), ""]
    return "\n".join(lines)


def section_type(kind: type[BaseModel], key: str) -> Optional[type[Section]]:
    """Return the type of a key that is a section; none for other keys."""
    annotation = kind.model_fields[key].annotation
    for one in (annotation, *typing.get_args(annotation)):
        if isinstance(one, type(Section)) and issubclass(one, Section):
            return one
    return None


def _rows(kind: type[BaseModel]) -> Iterator[str]:
    properties = kind.model_json_schema()["properties"]
    for key, field in kind.model_fields.items():
        section = section_type(kind, key)
        if section is not None:
            trains = issubclass(section, TrainingSection)
            cells = ["section", "none" if trains else "its defaults", "", f"see [{key}](#{key})"]
        elif not field.description:
            raise ValueError(f"{kind.__name__}.{key}: expected a description, found none; add Field(description=...)")
        else:
            default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
            cells = [_type(properties[key]), default, _range(properties[key]), field.description]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{key}`", *cells)) + " |"


def _type(schema: Schema) -> str:
    """Return the type of a value in words."""
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "prefixItems" in schema:
        return f"[{', '.join(_type(item) for item in schema['prefixItems'])}]"
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if schema["type"] == "object":
        return f"mapping of text to {_type(schema['additionalProperties'])}"
    return TYPES[schema["type"]]


def _range(schema: Schema) -> str:
    """Return the values that are allowed besides what the type says; an empty text if there is no such limit."""
    limits = [f"{sign} {schema[bound]:g}" for bound, sign in BOUNDS.items() if bound in schema]
    if "pattern" in schema:
        limits.append(f"`{schema['pattern']}`")
    if "items" in schema and "minItems" in schema:
        limits.append(f"at least {schema['minItems']} entry")
    for part in (*schema.get("anyOf", ()), *schema.get("prefixItems", ())):
        limits.append(_range(part))
    return ", ".join(dict.fromkeys(filter(None, limits)))


if __name__ == "__main__":
    print(markdown(), end="")
