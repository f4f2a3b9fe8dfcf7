"""A fake `hccn_tool`, because no test machine has an NPU."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest


@pytest.fixture
def hccn_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a tool on PATH that prints `<tmp_path>/answers/<device>`, and fails if that file is missing."""
    answers, tools = tmp_path / "answers", tmp_path / "bin"
    answers.mkdir()
    tools.mkdir()
    for device in range(8):
        (answers / str(device)).write_text(f"ipaddr:192.168.100.{100 + device}\nnetmask:255.255.255.0\n")
    tool = tools / "hccn_tool"
    tool.write_text(
        f'#!/bin/sh\n[ "$1 $3 $4" = "-i -ip -g" ] && [ -e "{answers}/$2" ] && exec cat "{answers}/$2"\n'
        'echo "hccn_tool get device $2 failed" >&2\nexit 1\n'
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return answers
