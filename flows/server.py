"""`make up` and `make down`: a Prefect server, a process worker and the deployments of prefect.yaml on this machine.

    python -m flows.server up [--workspace DIR] [--port N]
    python -m flows.server down [--workspace DIR]

The SQLite database, the logs and state.json, a list of the running processes, are in <workspace>/.prefect/server.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from datasets.base.errors import InputError
from datasets.base.files import write_json
from flows.processes import Service, healthy, own_environment, start

ROOT = Path(__file__).resolve().parent.parent
POOL = "mae-process"
HEARTBEAT_SECONDS = 30  # the shortest that Prefect accepts
PORT = 4200  # also in `[tool.prefect.api]` of pyproject.toml
PROCESSES = ("server", "worker")
USERS_OWN = ("PREFECT_SERVER_", "PREFECT_API_DATABASE_", "PREFECT_LOGGING_")  # e.g. a PostgreSQL address
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def main(arguments: list[str] | None = None) -> int:
    """Start or stop. Returns 0 on success and 1 on an error, which is printed. Wrong usage exits with 2."""
    parser = argparse.ArgumentParser("python -m flows.server", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["up", "down"])
    workspace = Path(os.environ.get("MAE_WORKSPACE", "workspace"))
    parser.add_argument("--workspace", type=Path, default=workspace, help="default: $MAE_WORKSPACE or workspace")
    parser.add_argument(
        "--port", type=int, default=int(os.environ.get("MAE_PORT", PORT)), help="default: $MAE_PORT or 4200"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "up":
            up(options.workspace.resolve(), options.port)
        else:
            down(options.workspace.resolve())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def up(workspace: Path, port: int) -> None:
    """Start the server, create the deployments and start the worker. A second call changes nothing.

    Raises:
        InputError: the port is in use, or a process does not start; the error ends with its log's last lines.
    """
    home = server_home(workspace)
    running, running_port = _running(home)
    if len(running) == len(PROCESSES):
        print(f"already running\n{_next_steps(running_port)}")
        return
    if running:
        print(f"only the {running[0].name} is running; starting both again")
        down(workspace)
    _require_free(port)
    home.mkdir(parents=True, exist_ok=True)
    environment = own_environment(home, _settings(port), keep=USERS_OWN) | {"MAE_WORKSPACE": str(workspace)}

    try:
        _start_all(home, port, environment)
    except BaseException:
        down(workspace)
        raise
    print(_next_steps(port))


def down(workspace: Path) -> None:
    """End the server, the worker and all their children. Runs in progress can be retried after the next `up`."""
    home = server_home(workspace)
    running, port = _running(home)
    if not running:
        print("nothing that `make up` started here is running")
    for process in reversed(running):
        if process.name == "server" and healthy(_settings(port)["PREFECT_API_URL"]):
            os.environ.update(own_environment(home, _settings(port)))  # before Prefect is imported here
            _crash_active_runs()
        process.end()
        print(f"{process.name} stopped")
    _state_file(home).unlink(missing_ok=True)


def server_home(workspace: Path) -> Path:
    """Return the folder of the server's database, logs and state.json."""
    return workspace / ".prefect" / "server"


def _start_all(home: Path, port: int, environment: dict[str, str]) -> None:
    print("server ...", flush=True)
    api_url = environment["PREFECT_API_URL"]
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = start("server", command, environment, home)
    _remember(home, port, [server])
    server.wait_until(lambda: healthy(api_url))
    print("deployments ...", flush=True)
    _call([*PREFECT, "work-pool", "create", POOL, "--type", "process", "--overwrite"], environment)
    _call([*PREFECT, "deploy", "--all"], environment)
    os.environ.update(environment)  # before Prefect is imported here
    _watch_for_dead_runs()
    print("worker ...", flush=True)
    command = [*PREFECT, "worker", "start", "--pool", POOL, "--name", "mae-worker"]
    worker = start("worker", command, environment | {"MAE_ROOT": str(ROOT)}, home)
    _remember(home, port, [server, worker])
    worker.wait_until(_worker_is_online)


def _settings(port: int) -> dict[str, str]:
    return {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_UI_V2_ENABLED": "false",  # it contacts amplitude.com even with analytics switched off
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_PLUGINS_ENABLED": "false",  # only a user's shell needs bare names; hooks would log an error
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    }


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose server has just ended is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            todo = "stop that process, or choose another: MAE_PORT=4201 make up"
            raise InputError(f"port {port}", expected="a free one", found="one in use", todo=todo) from None


def _call(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        found = f"exit code {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}"
        raise InputError(
            " ".join(command[2:]), expected="success", found=found, todo="correct prefect.yaml, `make up` again"
        )


def _watch_for_dead_runs() -> None:
    """Create the automation that sets a run to Crashed when its heartbeats stop, so that it can be retried.

    It cannot be in prefect.yaml: the `triggers:` of a deployment can only run that deployment.
    """
    from prefect.automations import Automation, EventTrigger, Posture
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState

    ends = {f"prefect.flow-run.{state}" for state in ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed")}
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect=ends,
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=4 * HEARTBEAT_SECONDS),  # below 3 heartbeats, healthy runs would be set to Crashed
    )
    action = ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: its process or its worker is gone")
    name = "crash runs without heartbeat"
    wanted = Automation(name=name, trigger=trigger, actions=[action])
    try:
        wanted.id = Automation.read(name=name, _sync=True).id  # type: ignore[call-overload]
    except ValueError:
        wanted.create()
    else:
        wanted.update()


def _worker_is_online() -> bool:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import WorkPoolStatus

    with get_client(sync_client=True) as client:
        return client.read_work_pool(POOL).status == WorkPoolStatus.READY


def _crash_active_runs() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    active = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=active))):
            client.set_flow_run_state(run.id, Crashed(message="stopped by `make down`; it can be retried"), force=True)
            if run.parent_task_run_id is None:
                print(f"run {run.name} ended; after the next `make up`: prefect flow-run retry {run.id}")


def _running(home: Path) -> tuple[list[Service], int]:
    """Return those of PROCESSES that are running, in that order, and the server's port."""
    try:
        state = json.loads(_state_file(home).read_text())
    except FileNotFoundError:
        return [], PORT
    remembered = [Service(**process) for process in state["processes"]]
    return [process for process in remembered if process.alive()], state["port"]


def _remember(home: Path, port: int, processes: list[Service]) -> None:
    write_json(_state_file(home), {"port": port, "processes": [dataclasses.asdict(process) for process in processes]})


def _state_file(home: Path) -> Path:
    return home / "state.json"


def _next_steps(port: int) -> str:
    lines = [f"Prefect UI: http://127.0.0.1:{port}", "next, in this directory:"]
    if port != PORT:
        lines.append(f"  export PREFECT_API_URL=http://127.0.0.1:{port}/api")
    run = f"{Path(sys.executable).parent}/prefect deployment run mae-pretrain -p config=configs/demo.yaml"
    return "\n".join([*lines, f"  {os.path.relpath(run)} --watch", "  make down"])


if __name__ == "__main__":
    sys.exit(main())
