"""Locks of NPUs in a folder of the test's own."""

import pytest

from mae.launch import locks as module


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """The folder of the locks."""
    folder = tmp_path / "locks"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(module, "FOLDERS", (str(folder),))
    return folder
