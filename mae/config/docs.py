"""Describes every config key as Markdown.

python -m mae.config.docs > docs/config.md
"""

from __future__ import annotations

import json
from typing import Any, Optional

from mae.config.protocols import protocols
from mae.config.sections import Config

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

Schema = dict[str, Any]  # JSON schema of a section or of one value


def markdown() -> str:
    """Return the description of all keys: of the config, of its sections, then of the protocols' sections.

    Raises:
        ValueError: a section or a key has no description.
    """
    whole = Config.model_json_schema()
    names = {key: _section(value) for key, value in whole["properties"].items()}
    sections = {key: whole["$defs"][name] for key, name in names.items() if name is not None}
    own = {name: module.Settings.model_json_schema() for name, module in protocols().items()}
    described = [description(*item) for item in {**sections, **own}.items()]
    return "\n".join([HEAD, description("The config itself", whole), *described])


def description(title: str, schema: Schema) -> str:
    """Return a heading, the docstring of a section, and a table with one row per key.

    Raises:
        ValueError: the section has no docstring, or one of its keys no description.
    """
    if "description" not in schema:
        raise ValueError(f"{schema['title']}: expected a docstring, found none; it becomes the text of docs/config.md")
    lines = [f"## {title}", "", schema["description"], ""]
    if schema["properties"]:
        rows = [_row(key, value, schema) for key, value in schema["properties"].items()]
        lines += ["| key | type | default | range | meaning |", "|---|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(key: str, value: Schema, section: Schema) -> str:
    if "description" not in value:
        raise ValueError(f"{section['title']}.{key}: expected a description, found none; add Field(description=...)")
    if _section(value) is not None:
        cells = ["section", "none" if value["default"] is None else "its defaults", "", f"see [{key}](#{key})"]
    else:
        default = "required" if key in section.get("required", ()) else f"`{json.dumps(value['default'])}`"
        cells = [_type(value), default, _range(value), value["description"]]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{key}`", *cells)) + " |"


def _section(value: Schema) -> Optional[str]:
    """Return the name of the type of a key that is a section; none for other keys."""
    links = [choice["$ref"] for choice in value.get("anyOf", [value]) if "$ref" in choice]
    return links[0].rpartition("/")[2] if links else None


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
