from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from datasets.base.errors import InputError
from datasets.base.processes import with_variable
from flows import processes
from flows.processes import Service, own_environment, start

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


def test_environment_is_confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    monkeypatch.setenv("PREFECT_PROFILE", "cloud")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_TIMEOUT", "9")
    monkeypatch.setenv("OTHER", "stays")
    found = own_environment(tmp_path, {"PREFECT_API_URL": "http://here/api"}, keep=("PREFECT_SERVER_",))
    prefect = {name: value for name, value in found.items() if name.startswith("PREFECT_")}
    assert prefect == {
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_URL": "http://here/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "9",
    }
    assert (found["OTHER"], found["DO_NOT_TRACK"]) == ("stays", "1")


def test_end_kills_the_process_and_its_children_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    family = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)"
    idle = [sys.executable, "-c", "import time; time.sleep(600)"]
    others = [start(name, idle, dict(os.environ), tmp_path) for name in ("mine", "another")]
    mine = start("mine", [sys.executable, "-c", family], dict(os.environ), tmp_path)
    mine.wait_until(lambda: "up" in Path(mine.log).read_text())
    assert len(with_variable(processes.MARK, mine.mark)) == 2
    mine.end()
    assert (mine.alive(), with_variable(processes.MARK, mine.mark)) == (False, set())
    for other in others:
        assert other.alive()
        other.end()
        assert not other.alive()


def test_another_process_with_the_same_pid_is_not_it(tmp_path: Path) -> None:
    earlier = Service("earlier", os.getpid(), "1", str(tmp_path / "log"), str(tmp_path / "mark"))
    assert not earlier.alive()
    earlier.end()  # would end this test's own process


def test_process_that_ends_early_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    process = start("short", [sys.executable, "-c", "print('no such device')"], dict(os.environ), tmp_path)
    started = time.monotonic()
    with pytest.raises(InputError, match=r"(?s)found that it ended; its log .*short\.log ends with:\nno such device"):
        process.wait_until(lambda: False)
    assert time.monotonic() - started < 10
