"""What tests of several folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

LONG = ("test_kill.py", "test_unpack.py", "test_server.py", "test_train.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first: of two processes none is then left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A real Prefect server on a temporary database; without heartbeats, which cost a second per flow run."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    from flows.processes import STARTUP_SECONDS

    with prefect_test_harness(STARTUP_SECONDS), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
