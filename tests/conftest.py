"""Fixtures and ordering that tests of several folders share.

tests/durations.json has the seconds of each test file. The longest files run first, so that no process is left alone
with one of them at the end. `RECORD_DURATIONS=1 make test-all` writes the file anew.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

DURATIONS = Path(__file__).with_name("durations.json")
ROOT = Path(__file__).parents[1]
UNKNOWN = 60.0  # seconds that a file without a record is assumed to take

seconds: Counter[str] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files by duration; the order within a file stays."""
    known = json.loads(DURATIONS.read_text())
    items.sort(key=lambda item: -known.get(str(item.path.relative_to(ROOT)), UNKNOWN))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the seconds of each file."""
    seconds[report.nodeid.split("::")[0]] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the seconds down, in the process that has those of all workers."""
    if os.environ.get("RECORD_DURATIONS") and not hasattr(session.config, "workerinput"):
        recorded = {name: round(total, 1) for name, total in sorted(seconds.items())}
        DURATIONS.write_text(json.dumps(recorded, indent=2) + "\n")


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A real Prefect server on a temporary database; without heartbeats, which cost a second per flow run."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    from flows.processes import STARTUP_SECONDS

    with prefect_test_harness(STARTUP_SECONDS), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
