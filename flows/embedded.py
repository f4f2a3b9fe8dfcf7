"""`python -m flows.pretrain CONFIG`: the chain with a Prefect server of its own, which ends when the chain ends.

Do not import Prefect at the top of this file: Prefect reads its settings when it is imported, and `embedded_server`
makes them. They replace ~/.prefect, the user's profile and any API address configured elsewhere.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from datasets.base.errors import InputError
from flows.job import check_job
from flows.processes import healthy, own_environment, start
from mae.launch import RanksFailed

LINE = "%(asctime)s  %(message)s"
SETTINGS = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # hides Prefect's own lines; `main` prints an error as one line
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT": LINE,
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": LINE,
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": LINE,
}


def main(load_flow: Callable[[], Callable[..., Any]], arguments: list[str] | None = None) -> int:
    """Run a flow that takes the parameters of `mae_pretrain`, with a server of its own.

    Args:
        load_flow: imports the flow, and with it Prefect; called when Prefect's settings are made.
        arguments: of the command line; default: this process's.

    Returns:
        0 when the flow has finished, 1 when its input or the run is at fault. Wrong usage exits with 2.
    """
    started = time.monotonic()
    options = _parse(arguments)
    workspace = options.workspace.resolve()
    os.environ["MAE_WORKSPACE"] = str(workspace)
    try:
        check_job(options.config, options.set, options.data_root, options.stage)  # the flow's check is seconds later
        with embedded_server(workspace / ".prefect" / "embedded") as wait:
            _run(load_flow, options, started, wait)
    except (InputError, RanksFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 1
    return 0


@contextmanager
def embedded_server(homes: Path) -> Iterator[Callable[[], None]]:
    """Start a Prefect server without UI and background services, and make it this process's Prefect API.

    Several chains may run in one workspace at once. Each has its own server, with its own database and log in
    <homes>/<n>. A later chain reuses the database of one that has ended, which saves creating its tables (10 s).

    Yields:
        a function that waits until the server is ready. The flows can be imported while it starts.
    """
    home, lock = _free_home(homes)
    with lock, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # the server inherits this socket, so no other process can take the port
        api_url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        environment = own_environment(home, {**SETTINGS, "PREFECT_API_URL": api_url})
        os.environ.clear()
        os.environ.update(environment)
        command = [sys.executable, "-m", "flows.embedded", str(listener.fileno()), str(os.getpid())]
        server = start("prefect", command, environment, home, keep_open=(lock.fileno(), listener.fileno()))
    try:
        yield lambda: server.wait_until(lambda: healthy(api_url))
    finally:
        server.end()


def serve(listener: int, parent: int) -> None:
    """Serve Prefect's API on a bound socket, until the process `parent`, which started this one, ends.

    Args:
        listener: file descriptor of the socket.
    """
    pr_set_pdeathsig = 1  # prctl(2): the kernel kills this process when its parent ends, whatever the parent dies of
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        return
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[socket.socket(fileno=listener)])


def _free_home(homes: Path) -> tuple[Path, IO[str]]:
    """Return the first folder <homes>/<n> without a living server, and its locked file.

    The server inherits the lock, and the kernel releases it when the server ends.
    """
    number = 0
    while True:
        number += 1
        home = homes / str(number)
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return home, lock
        except BlockingIOError:
            lock.close()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m flows.pretrain", description="Run the chain on this machine.")
    parser.add_argument("config", help="YAML job config, e.g. configs/demo.yaml")
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of images; default: the config's, or the shipped sample"
    )
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change the config")
    parser.add_argument(
        "--stage", metavar="NAME", action="append", help="run this stage and those it needs; default: all"
    )
    parser.add_argument("--cluster", metavar="FILE", help="inventory of the servers that train together")
    default = Path(os.environ.get("MAE_WORKSPACE", "workspace"))
    parser.add_argument(
        "--workspace", metavar="DIR", type=Path, default=default, help="default: $MAE_WORKSPACE or workspace"
    )
    return parser.parse_args(arguments)


def _run(
    load_flow: Callable[[], Callable[..., Any]],
    options: argparse.Namespace,
    started: float,
    wait: Callable[[], None],
) -> None:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from tasks.stage import seconds_of_work

    flow = load_flow()
    wait()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        chain = flow(options.config, options.set, options.data_root, options.cluster, options.stage)
    total = time.monotonic() - started
    work = sum(seconds_of_work.values())
    if chain.report is not None:
        print(f"report: {chain.report}")
    print(f"{total:.0f} s, of which the flow's own {total - work:.1f} s")


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
