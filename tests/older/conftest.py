"""The other interpreter, and runs of it. These tests need `OTHER_PYTHON`: see `make test-older`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mae.conftest import images, records, tiny, tiny_yaml

OTHER = os.environ.get("OTHER_PYTHON")
collect_ignore = [] if OTHER else ["test_release.py"]

__all__ = ["images", "records", "tiny", "tiny_yaml"]


@pytest.fixture(scope="session")
def other() -> str:
    """The path of the other interpreter."""
    return str(Path(str(OTHER)).absolute())
