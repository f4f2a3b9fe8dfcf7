"""`make up` as a user has it: server, worker, a run by its bare name, killed ranks, a retry, the nightly schedule."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from datasets.base.processes import with_variable
from flows.server import server_home
from mae.launch.ranks import LAUNCH_DIR

ROOT = Path(__file__).resolve().parents[2]
PREFECT = str(Path(sys.executable).with_name("prefect"))
T = TypeVar("T")

pytestmark = pytest.mark.slow


class Installation:
    """A workspace in which `up` runs on a free port."""

    def __init__(self, workspace: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.workspace = workspace
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api", timeout=30)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "MAE_WORKSPACE": str(workspace),
            "MAE_PORT": str(self.port),
            "DO_NOT_TRACK": "1",
        }

    def call(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | more
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)

    def make(self, what: str) -> subprocess.CompletedProcess[str]:
        return self.call(sys.executable, "-m", "flows.server", what)

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        url = str(self.api.base_url).rstrip("/")
        return self.call(PREFECT, *arguments, PREFECT_API_URL=url, PREFECT_HOME=str(self.workspace / "user"))

    def pretrain(self, job: Path, root: Path, *overrides: str) -> str:
        """Start mae-pretrain by its bare name; returns the run's id."""
        parameters = {"config": job, "data_root": root, "overrides": json.dumps(overrides)}
        flags = [flag for name, value in parameters.items() for flag in ("-p", f"{name}={value}")]
        started = self.prefect("deployment", "run", "mae-pretrain", *flags)
        assert started.returncode == 0, started.stderr
        return next(line.split()[-1] for line in started.stdout.splitlines() if "UUID" in line)

    def run(self, run_id: str) -> dict:
        return self.api.get(f"/flow_runs/{run_id}").raise_for_status().json()

    def stages(self, run_id: str) -> dict[str, list[str]]:
        """Return the states of a run's stage runs, by stage, in the order of their creation."""
        question = {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found: dict[str, list[str]] = {}
        for stage in self.api.post("/flow_runs/filter", json=question).raise_for_status().json():
            found.setdefault(stage["name"], []).append(stage["state"]["name"])
        return found


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("up") / "workspace")
    try:
        done = installation.make("up")
        assert done.returncode == 0, done.stderr
        assert f"http://127.0.0.1:{installation.port}" in done.stdout
        yield installation
    finally:
        done = installation.make("down")
        assert done.stdout.splitlines()[-2:] == ["worker stopped", "server stopped"], done.stdout + done.stderr
        assert with_variable("PREFECT_HOME", str(server_home(installation.workspace))) == set()


def test_up_again_finds_it_running(up: Installation) -> None:
    done = up.make("up")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "already running")


def test_taken_port_is_refused(up: Installation, tmp_path: Path) -> None:
    done = up.call(sys.executable, "-m", "flows.server", "up", "--workspace", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"port {up.port}: expected a free one" in done.stderr
    assert not list(tmp_path.iterdir())


def test_deployments(up: Installation) -> None:
    found = up.api.post("/deployments/filter", json={}).raise_for_status().json()
    names = {"mae-pretrain", "mae-prepare-data", "mae-rank-table", "mae-evaluate", "mae-predict"}
    assert {deployment["name"] for deployment in found} == names
    pull = {str(deployment["pull_steps"]) for deployment in found}
    assert pull == {"[{'prefect.deployments.steps.set_working_directory': {'directory': '{{ $MAE_ROOT }}'}}]"}


def test_nightly_evaluation_is_really_scheduled(up: Installation) -> None:
    """With SQLAlchemy 2.1 the schedule would get no runs, and no other test would notice."""

    def scheduled() -> list[str]:
        deployment = up.api.get("/deployments/name/mae-evaluate/mae-evaluate").raise_for_status().json()
        question = {"deployments": {"id": {"any_": [deployment["id"]]}}}
        runs = up.api.post("/flow_runs/filter", json=question).raise_for_status().json()
        return sorted(run["expected_start_time"] for run in runs if run["state_type"] == "SCHEDULED")

    times = wait_for(scheduled, seconds=60)
    assert {time_[11:19] for time_ in times} == {"18:00:00"}, "02:00 in Shanghai"


def test_dead_run_automation_is_there_once(up: Installation) -> None:
    found = up.api.post("/automations/filter", json={}).raise_for_status().json()
    assert [automation["name"] for automation in found] == ["crash runs without heartbeat"]
    assert found[0]["trigger"]["within"] >= 3 * 30


def test_killed_ranks_then_retry(up: Installation, tiny_job: Path, tiny_root: Path) -> None:
    run_id = up.pretrain(tiny_job, tiny_root)
    log = server_home(up.workspace) / "worker.log"
    metrics = wait_for(lambda: list((up.workspace / "runs").glob("tiny-*/metrics.jsonl")), log=log)[0]
    wait_for(lambda: metrics.read_text().count("\n") > 2, log=log)
    for pid in with_variable(LAUNCH_DIR, str(metrics.parent / "launch")):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: up.run(run_id)["state_name"] == "Failed", log=log)
    assert "killed" in up.run(run_id)["state"]["message"]

    retried = up.prefect("flow-run", "retry", run_id)
    assert retried.returncode == 0, retried.stderr
    wait_for(lambda: up.run(run_id)["state_name"] in ("Completed", "Failed", "Crashed"), log=log)
    assert up.stages(run_id) == {
        "validate": ["Completed"],
        "shard": ["Completed"],
        "rank-table": ["Completed"],
        "pretrain": ["Failed", "Completed"],
        "evaluate": ["Completed"],
        "report": ["Completed"],
    }
    graph = up.api.get(f"/flow_runs/{run_id}/graph-v2").raise_for_status().json()  # what the run's page draws
    boxes = [node["label"].split(" / ")[0] for _, node in graph["nodes"] if node["kind"] == "flow-run"]
    assert sorted(boxes) == sorted(["validate", "shard", "rank-table", "pretrain", "pretrain", "evaluate", "report"])
    assert (metrics.parent / "report" / "index.html").is_file()
    assert "shard: kept from the earlier attempt" in log.read_text()


def test_killed_run_leaves_no_ranks(up: Installation, tiny_job: Path, tiny_root: Path) -> None:
    """Only the flow's hook, in a process of the worker, is left to clear the launch directory."""
    run_id = up.pretrain(tiny_job, tiny_root, "name=endless", "pretrain.epochs=100000")
    log = server_home(up.workspace) / "worker.log"
    launcher = wait_for(lambda: list((up.workspace / "runs").glob("endless-*/launch/launcher.json")), log=log)[0]
    wait_for(lambda: with_variable(LAUNCH_DIR, str(launcher.parent)), log=log)
    os.kill(json.loads(launcher.read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: up.run(run_id)["state_name"] == "Crashed", log=log)
    wait_for(lambda: not launcher.parent.exists(), log=log)
    assert with_variable(LAUNCH_DIR, str(launcher.parent)) == set()


def test_the_real_job_fails_at_once_without_npus(up: Installation) -> None:
    started = up.prefect("deployment", "run", "mae-pretrain")
    run_id = next(line.split()[-1] for line in started.stdout.splitlines() if "UUID" in line)
    wait_for(lambda: up.run(run_id)["state_name"] in ("Completed", "Failed", "Crashed"), seconds=60)
    run = up.run(run_id)
    assert run["state_name"] == "Failed"
    assert "expected 8 Ascend NPUs" in run["state"]["message"]
    assert "configs/demo.yaml" in run["state"]["message"]
    assert up.stages(run_id) == {}


def test_unknown_deployment(up: Installation) -> None:
    done = up.prefect("deployment", "run", "mae-pretrian")
    assert done.returncode == 1
    assert "not found" in done.stdout + done.stderr


def wait_for(question: Callable[[], T], *, seconds: float = 120, log: Path | None = None) -> T:
    """Wait for a true answer and return it."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, log.read_text()[-3000:] if log else "in vain"
        time.sleep(0.2)
    return answer
