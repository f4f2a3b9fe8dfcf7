"""`python -m flows.pretrain` as a user starts it, in a home whose Prefect points elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def chain(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it with HOME=`home`; nothing answers at the API that this environment names."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DO_NOT_TRACK"))}
    environment = {**kept, "HOME": str(home), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "flows.pretrain", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_stages_with_a_server_of_their_own(tmp_path: Path, tiny_job: Path, tiny_root: Path) -> None:
    workspace = tmp_path / "workspace"
    done = chain(tmp_path, tiny_job, "--data-root", tiny_root, "--stage", "validate", "--workspace", workspace)
    assert done.returncode == 0, done.stderr
    assert "validate: done" in done.stderr
    assert "the flow's own" in done.stdout
    assert list((workspace / "datasets").glob("tiny-*/manifest.parquet"))
    assert not (tmp_path / ".prefect").exists()
    assert str(workspace) not in _commands_and_environments()


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
    done = chain(tmp_path, tiny_job, *arguments, "--workspace", tmp_path / "workspace")
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert message in done.stderr.strip().splitlines()[-1]


def _commands_and_environments() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)
