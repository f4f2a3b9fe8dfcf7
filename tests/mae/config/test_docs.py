"""docs/config.md: it is up to date, and a key without a description cannot get into it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from mae.config.docs import description, markdown
from mae.config.protocols import protocols
from mae.config.sections import Config, Section

ROOT = Path(__file__).parents[3]


def test_the_file_is_what_the_command_prints():
    environment = {name: value for name, value in os.environ.items() if name != "MAE_PROTOCOLS"}
    command = [sys.executable, "-m", "mae.config.docs"]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    todo = "run `python -m mae.config.docs > docs/config.md`"
    assert (ROOT / "docs" / "config.md").read_text() == printed, todo


def test_every_key_of_every_section_has_a_row():
    sections = {section for section in markdown().split("\n## ")[1:] if "| key |" in section}
    rows = {
        (text.split("\n")[0], line.split("`")[1]) for text in sections for line in text.splitlines() if "| `" in line
    }
    expected = {("The config itself", key) for key in Config.model_fields}
    for name in ("data", "model", "device", "compute", "evaluate", "pretrain"):
        annotation = Config.model_fields[name].annotation
        kind = annotation if isinstance(annotation, type) else annotation.__args__[0]
        expected |= {(name, key) for key in kind.model_fields}
    expected |= {(name, key) for name, module in protocols().items() for key in module.Settings.model_fields}
    assert rows == expected


def test_a_row():
    class Named(Section):
        """What it is."""

        side: int | None = Field(None, gt=0, le=8, description="a | b")

    assert description("named", Named.model_json_schema()).splitlines() == [
        "## named",
        "",
        "What it is.",
        "",
        "| key | type | default | range | meaning |",
        "|---|---|---|---|---|",
        "| `side` | integer or `null` | `null` | > 0, <= 8 | a \\| b |",
    ]


def test_a_key_without_description_is_an_error():
    class Silent(Section):
        """What it is."""

        side: int = 3

    with pytest.raises(ValueError, match=r"Silent\.side: expected a description"):
        description("silent", Silent.model_json_schema())


def test_a_section_without_docstring_is_an_error():
    class Silent(Section):
        side: int = Field(3, description="a side")

    with pytest.raises(ValueError, match="Silent: expected a docstring"):
        description("silent", Silent.model_json_schema())
