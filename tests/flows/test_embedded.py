"""`python -m flows.pretrain` as a user starts it, in a home directory whose Prefect settings name another server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from datasets.base.processes import with_variable

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300  # for what takes 20 s on two idle cores


def start(home: Path, *arguments: object, module: str = "flows.pretrain") -> subprocess.Popen[str]:
    """Start a chain with HOME=`home`. No server answers at the PREFECT_API_URL of its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DO_NOT_TRACK"))}
    environment = {**kept, "HOME": str(home), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a chain; returns its exit code, stdout and stderr."""
    output, errors = process.communicate(timeout=SECONDS)
    return process.returncode, output, errors


def test_stages_with_a_server_of_their_own(tmp_path: Path, tiny_job: Path, tiny_root: Path) -> None:
    workspace = tmp_path / "workspace"
    options = ["--data-root", tiny_root, "--stage", "validate", "--workspace", workspace]
    code, output, errors = end(start(tmp_path, tiny_job, *options))
    assert code == 0, errors
    assert "validate: done" in errors
    assert "the flow's own" in output
    assert list((workspace / "datasets").glob("tiny-*/manifest.parquet"))
    assert not (tmp_path / ".prefect").exists()
    assert with_variable("MAE_WORKSPACE", str(workspace)) == set()


@pytest.fixture
def waiting(tmp_path: Path, tiny_job: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a chain of a name in the workspace; see `tests.flows.waiting_chain`. All have HOME=<tmp_path>/<name>."""
    chains = []

    def start_waiting(name: str) -> subprocess.Popen[str]:
        (tmp_path / name).mkdir()
        options = ["--data-root", tmp_path / name, "--workspace", tmp_path / "workspace"]
        chains.append(start(tmp_path / name, tiny_job, *options, module="tests.flows.waiting_chain"))
        return chains[-1]

    yield start_waiting
    for chain in chains:
        chain.kill()


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param(["refused"], id="refused"),
        pytest.param(["done", "SIGTERM", "SIGKILL"], id="done-and-killed", marks=pytest.mark.slow),
    ],
)
def test_chains_in_one_workspace_leave_each_other_alone(
    tmp_path: Path, waiting: Callable[[str], subprocess.Popen[str]], ends: list[str]
) -> None:
    """The first chain must still reach its server after the others, started during its run, have ended."""
    chains = {name: waiting(name) for name in ("first", *ends)}
    wait_until(lambda: all((tmp_path / name / "running").exists() for name in chains))
    for name in ends:
        if name.startswith("SIG"):
            chains[name].send_signal(signal.Signals[name])
        else:
            (tmp_path / name / "go").write_text("this chain is refused" if name == "refused" else "")
        code, _, errors = end(chains[name])
        assert code == {"done": 0, "refused": 1, "SIGTERM": -signal.SIGTERM, "SIGKILL": -signal.SIGKILL}[name], errors
        wait_until(lambda name=name: not with_variable("HOME", str(tmp_path / name)))

    (tmp_path / "first" / "go").touch()
    code, output, errors = end(chains["first"])
    assert (code, "the flow's own" in output) == (0, True), errors
    assert with_variable("HOME", str(tmp_path / "first")) == set()
    logs = list((tmp_path / "workspace" / ".prefect" / "embedded").glob("*/prefect.log"))
    assert len(logs) == len(chains), "each chain has a log of its own"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(["--set", "pretrain.epoch=3"], 1, "did you mean epochs", id="unknown-key"),
        pytest.param(["--stage", "evaluat"], 1, "did you mean evaluate", id="unknown-stage"),
        pytest.param(["--set", "device.target=Ascend"], 1, "configs/demo.yaml", id="no-npu"),
        pytest.param(["--epochs", "3"], 2, "unrecognized arguments", id="usage"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, tiny_job: Path, arguments: list[str], code: int, message: str) -> None:
    found, _, errors = end(start(tmp_path, tiny_job, *arguments, "--workspace", tmp_path / "workspace"))
    assert (found, "Traceback" in errors) == (code, False), errors
    assert message in errors.strip().splitlines()[-1]


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
