"""`python -m flows.pretrain CONFIG`: the chain with a Prefect server of its own, which ends with it.

Prefect must not be imported at the top of this file: it reads its settings when it is imported, and these have to be
the ones made here. Nothing of ~/.prefect, of the user's profile or of an API address configured anywhere counts.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.base.errors import InputError
from flows.job import prepare
from flows.processes import healthy, own_environment, start
from mae.launch import RanksFailed

LINE = "%(asctime)s  %(message)s"
SETTINGS = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # Prefect's own lines; an error reaches the user as one line at the end
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT": LINE,
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": LINE,
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": LINE,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the chain; returns 0 when it is done, 1 when the input or the run is at fault. Wrong usage exits with 2."""
    started = time.monotonic()
    options = _parse(arguments)
    workspace = options.workspace.resolve()
    os.environ["MAE_WORKSPACE"] = str(workspace)
    try:
        prepare(options.config, options.set, options.data_root, options.stage)  # the flow does so too, seconds later
        with embedded_server(workspace / ".prefect" / "embedded") as wait:
            _run(options, started, wait)
    except (InputError, RanksFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 1
    return 0


@contextmanager
def embedded_server(home: Path) -> Iterator[Callable[[], None]]:
    """Start a Prefect server without UI and services and make it this process's Prefect API.

    Yields a function that waits until it is ready: importing the flows meanwhile costs no time.
    """
    home.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api_url = f"http://127.0.0.1:{port}/api"
    environment = own_environment(home, {**SETTINGS, "PREFECT_API_URL": api_url})
    os.environ.clear()
    os.environ.update(environment)
    server = start("prefect", [sys.executable, "-m", "flows.embedded", str(port)], environment, home)
    try:
        yield lambda: server.wait_until(lambda: healthy(api_url))
    finally:
        server.end()


def serve(port: int) -> None:
    """Be that server until the process that started this one ends, however it ends."""
    pr_set_pdeathsig = 1  # prctl(2)
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(ephemeral=True, final=True), host="127.0.0.1", port=port, log_level="error")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m flows.pretrain", description="Run the chain on this machine.")
    parser.add_argument("config", help="YAML job config, e.g. configs/demo.yaml")
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of images; default: the config's, or the shipped sample"
    )
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change the config")
    parser.add_argument(
        "--stage", metavar="NAME", action="append", help="run this stage and what it needs; default: all"
    )
    parser.add_argument("--cluster", metavar="FILE", help="inventory of the servers that train together")
    default = Path(os.environ.get("MAE_WORKSPACE", "workspace"))
    parser.add_argument(
        "--workspace", metavar="DIR", type=Path, default=default, help="default: $MAE_WORKSPACE or workspace"
    )
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, started: float, wait: Callable[[], None]) -> None:
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.pretrain import mae_pretrain
    from tasks.stage import seconds_of_work

    wait()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        chain = mae_pretrain(options.config, options.set, options.data_root, options.cluster, options.stage)
    total = time.monotonic() - started
    work = sum(seconds_of_work.values())
    if chain.report is not None:
        print(f"report: {chain.report}")
    print(f"{total:.0f} s, of which the flow's own {total - work:.1f} s")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
