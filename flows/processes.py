"""Prefect's processes: the environment they get, whether they are alive, how they end.

Nothing here may import Prefect: it reads its settings when it is imported, and these functions make those settings.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets.base.errors import InputError
from datasets.base.processes import is_running, started, with_variable

STARTUP_SECONDS = 300  # the first start creates the database tables: 8 s on two idle cores, minutes on busy ones
GRACE_SECONDS = 20
MARK = "MAE_STARTED_AS"  # an environment variable of each process started here; its own children inherit it


@dataclass(frozen=True)
class Service:
    """A background process started here. Linux may reuse a pid; a pid with its start time is unique.

    Args:
        mark: the value of MARK, different for every start.
    """

    name: str
    pid: int
    start_time: str
    log: str
    mark: str

    def alive(self) -> bool:
        """Return whether the process is running."""
        return is_running(self.pid, self.start_time)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready` returns True.

        Raises:
            InputError: the process ended, or was not ready within STARTUP_SECONDS.
        """
        deadline = time.monotonic() + STARTUP_SECONDS
        while not ready():
            if not self.alive() or time.monotonic() > deadline:
                found = "it still starting" if self.alive() else "that it ended"
                last = Path(self.log).read_text(errors="replace")[-500:].strip()
                todo = f"its log {self.log} ends with:\n{last}"
                raise InputError(self.name, expected=f"it ready within {STARTUP_SECONDS} s", found=found, todo=todo)
            time.sleep(0.1)

    def end(self) -> None:
        """Send SIGTERM and wait up to GRACE_SECONDS, then kill what is left of the process and its children."""
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        while left := with_variable(MARK, self.mark):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def start(
    name: str, command: list[str], environment: dict[str, str], home: Path, *, keep_open: tuple[int, ...] = ()
) -> Service:
    """Start a process in its own session, which Ctrl-C does not reach. Its output goes to <home>/<name>.log.

    Args:
        keep_open: file descriptors that the process inherits.
    """
    log = home / f"{name}.log"
    mark = f"{home}/{name}/{uuid.uuid4().hex}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment | {MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=keep_open,
        )
    return Service(name, process.pid, started(process.pid) or "0", str(log), mark)


def own_environment(home: Path, settings: dict[str, str], *, keep: tuple[str, ...] = ()) -> dict[str, str]:
    """Return this process's environment with Prefect confined to `home` and its telemetry off.

    Args:
        settings: PREFECT_* variables; they win over pyproject.toml and over any profile.
        keep: prefixes of the user's own PREFECT_* variables that stay; all others are dropped.
    """
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_") or name.startswith(keep)
    }
    kept.setdefault("GLOG_v", "3")  # MindSpore logs errors only, as in the ranks
    quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return {**kept, **quiet, "PREFECT_HOME": str(home), **settings}


def healthy(api_url: str) -> bool:
    """Return whether a Prefect API answers at this address."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
