"""Prefect's processes: what they may know of this machine's Prefect, whether they live, how they end.

Nothing here imports Prefect, which reads its settings when it is imported: these functions decide those settings.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets.base.errors import InputError
from mae.launch import started, with_variable

STARTUP_SECONDS = 120  # a first start writes the database's schema: about 8 s on two quiet cores
GRACE_SECONDS = 20
MARK = "MAE_STARTED_AS"  # in the environment of each process started here, and of all that they start


@dataclass(frozen=True)
class Started:
    """A process started here: a pid with its start time is never another one's."""

    name: str
    pid: int
    start_time: str
    log: str
    mark: str

    def alive(self) -> bool:
        """Whether it runs."""
        return started(self.pid) == self.start_time

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait for it to be ready.

        Raises:
            InputError: it ended, or took longer than STARTUP_SECONDS.
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
        """SIGTERM, after at most GRACE_SECONDS SIGKILL to it and to all that it has started and left behind."""
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        while left := with_variable(MARK, self.mark):
            for pid in left:
                _kill(pid)
            time.sleep(0.1)


def start(name: str, command: list[str], environment: dict[str, str], home: Path) -> Started:
    """Start a process in a session of its own, which Ctrl-C does not reach, with its output in <home>/<name>.log."""
    log = home / f"{name}.log"
    mark = f"{home}/{name}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment | {MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Started(name, process.pid, started(process.pid) or "", str(log), mark)


def own_environment(home: Path, settings: dict[str, str], *, keep: tuple[str, ...] = ()) -> dict[str, str]:
    """This process's environment with Prefect confined to `home`, and silent towards the outside.

    Args:
        settings: PREFECT_* variables; they win over pyproject.toml and over any profile.
        keep: beginnings of the names of the user's own PREFECT_* variables that still count.
    """
    users_own = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_") or name.startswith(keep)
    }
    quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    users_own.setdefault("GLOG_v", "3")  # MindSpore logs errors only, as in the ranks
    return {**users_own, **quiet, "PREFECT_HOME": str(home), **settings}


def healthy(api_url: str) -> bool:
    """Whether a Prefect API answers."""
    try:
        with urllib.request.urlopen(f"{api_url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(pid, signal.SIGKILL)
