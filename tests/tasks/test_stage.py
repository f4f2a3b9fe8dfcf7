from __future__ import annotations

import logging
import time

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from datasets.base.errors import InputError
from tasks import stage


class BrokenError(Exception):
    pass


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("error", "calls"),
    [
        pytest.param(InputError("x", expected="a", found="b", todo="c"), 1, id="input-error"),
        pytest.param(BrokenError("look at it"), 1, id="final"),
        pytest.param(OSError("disk full"), 4, id="may-pass"),
    ],
)
def test_which_failed_calls_are_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, calls: int
) -> None:
    monkeypatch.setattr(stage, "RETRY_DELAYS", [0.0, 0.0, 0.0])
    made = []

    @stage.stage_task("fragile", final=(BrokenError,))
    def fragile() -> None:
        made.append(1)
        raise error

    @flow
    def trial() -> None:
        fragile()

    with pytest.raises(type(error)):
        trial()
    assert len(made) == calls
    assert caplog.text.count("fragile: failed and is tried again: OSError: disk full") == calls - 1


@pytest.mark.usefixtures("prefect_api")
def test_page_and_library_logs_reach_the_run() -> None:
    @stage.stage_task("speak")
    def speak() -> None:
        logging.getLogger("datasets.anything").info("a library line")
        stage.markdown("page-of-a-test", "text", ("a", "b"), (1, "x"))

    @flow
    def trial() -> None:
        speak()

    stage.show_library_logs()
    run_id = str(trial(return_state=True).state_details.flow_run_id)
    with get_client(sync_client=True) as client:
        pages = client.request("POST", "/artifacts/filter", json={}).json()
        text = "text\n\n| a | b |\n| --- | --- |\n| 1 | x |"
        assert ("page-of-a-test", text) in [(page["key"], page["data"]) for page in pages]
        question = {"logs": {"flow_run_id": {"any_": [run_id]}}}  # without a filter, only the first 200 are returned
        deadline = time.monotonic() + 20  # log lines are sent in batches
        while "a library line" not in client.request("POST", "/logs/filter", json=question).text:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_task_without_prefect_writes_no_page() -> None:
    @stage.stage_task("alone")
    def alone() -> int:
        stage.markdown("page", "text")
        return 3

    stage.seconds_of_work.clear()
    assert alone.fn() == 3
    assert list(stage.seconds_of_work) == ["alone"]
