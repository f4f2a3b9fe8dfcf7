"""What the tasks share: when a call is worth repeating, what an operator sees of it, how long it took."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

from datasets.base.digests import file_digest
from datasets.base.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAYS = [2.0, 10.0, 30.0]  # seconds: a full disk or a shared file system that comes back

logger = logging.getLogger(__name__)
seconds_of_work: dict[str, float] = {}  # by task name, of this process; the rest of a run is the flow's own overhead


def stage_task(
    name: str,
    *,
    run_name: str | None = None,
    timeout_hours: float | None = None,
    final: tuple[type[Exception], ...] = (),
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a Prefect task of one call into datasets/ or mae/.

    A failed call is made again after each of RETRY_DELAYS, unless it raised InputError: that cannot help.

    Args:
        name: plain ASCII, as the UI's graph draws no other.
        run_name: template of a call's own name, with the parameters in braces; default: the name.
        timeout_hours: a limit that no healthy call comes near.
        final: other errors that somebody should look at before the call is made again.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            started = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                seconds_of_work[name] = seconds_of_work.get(name, 0.0) + time.monotonic() - started

        return task(
            name=name,
            task_run_name=run_name or name,
            retries=len(RETRY_DELAYS),
            retry_delay_seconds=RETRY_DELAYS,
            retry_condition_fn=_worth_repeating((InputError, *final)),
            timeout_seconds=None if timeout_hours is None else timeout_hours * 3600,
        )(timed)

    return decorate


def markdown(key: str, text: str) -> None:
    """Attach a markdown page to the current task run; a task called without Prefect (`.fn`) shows none."""
    if TaskRunContext.get() is not None:
        create_markdown_artifact(text, key=key)


def table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """A markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def unchanged(path: Path, digest: str) -> bool:
    """Whether a file is there and still has the digest that a result promised."""
    return path.is_file() and file_digest(path) == digest


def show_library_logs() -> None:
    """Send what datasets/, mae/ and the flows log to the Prefect run that called them, from level INFO.

    Prefect's own setting for it, PREFECT_LOGGING_EXTRA_LOGGERS, leaves their level at WARNING.
    """
    for name in ("datasets", "mae", "tasks", "flows"):
        library = logging.getLogger(name)
        library.setLevel(logging.INFO)
        if not any(isinstance(handler, APILogHandler) for handler in library.handlers):
            handler = APILogHandler()
            handler.addFilter(lambda _: FlowRunContext.get() is not None or TaskRunContext.get() is not None)
            library.addHandler(handler)


def _worth_repeating(final: tuple[type[Exception], ...]) -> Callable[[Task[..., Any], TaskRun, State[Any]], bool]:
    """Prefect's question after a failed call. It has to be a function: of any other callable Prefect takes a "no"."""

    def worth_repeating(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 (Prefect's call)
        error = state.data
        if isinstance(error, final):
            return False
        logger.warning("%s: %s: %s", task.name, type(error).__name__, error)
        return True

    return worth_repeating
