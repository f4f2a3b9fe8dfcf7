"""Shared by all tasks: retries, timing, logs, and the pages that an operator sees in Prefect's UI."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

from datasets.base.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAYS = [2.0, 10.0, 30.0]  # seconds in which a full disk or a shared file system may recover

logger = logging.getLogger(__name__)
seconds_of_work: dict[str, float] = {}  # of this process, by task name; the rest of a run's time is overhead


def stage_task(
    name: str,
    *,
    run_name: str | None = None,
    timeout_hours: float | None = None,
    final: tuple[type[Exception], ...] = (),
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function that calls datasets/ or mae/ a Prefect task.

    A failed call is repeated after each of RETRY_DELAYS, except after an InputError, which a retry cannot fix.

    Args:
        name: plain ASCII; the UI's graph draws no other characters.
        run_name: template for the name of a single call, with parameters in braces. Default: `name`.
        timeout_hours: far above the time of any healthy call.
        final: more errors after which the call is not repeated, as a person has to look first.
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


def markdown(key: str, text: str, *table: tuple[object, ...]) -> None:
    """Attach a markdown page to the current task run: a text and then a table, whose first row is the header.

    Without a task run (a task called as `.fn`) do nothing.
    """
    if TaskRunContext.get() is not None:
        lines = [*table[:1], *([("---",) * len(table[0])] if table else ()), *table[1:]]
        rows = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        create_markdown_artifact(f"{text}\n\n{rows}", key=key)


def show_library_logs() -> None:
    """Send the log lines of this project's packages, from level INFO, to the Prefect run that they belong to.

    Prefect's setting for this, PREFECT_LOGGING_EXTRA_LOGGERS, would keep their level at WARNING.
    """
    for name in ("datasets", "mae", "tasks", "flows"):
        library = logging.getLogger(name)
        library.setLevel(logging.INFO)
        if not any(isinstance(handler, APILogHandler) for handler in library.handlers):
            handler = APILogHandler()
            handler.addFilter(lambda _: FlowRunContext.get() is not None or TaskRunContext.get() is not None)
            library.addHandler(handler)


def _worth_repeating(final: tuple[type[Exception], ...]) -> Callable[[Task[..., Any], TaskRun, State[Any]], bool]:
    """Return the function that Prefect calls when a call has failed and retries are left.

    It must be a plain function: Prefect 3.8 never repeats the call if it is another kind of callable.
    """

    def worth_repeating(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001 (Prefect's signature)
        error = state.data
        if isinstance(error, final):
            return False
        logger.warning("%s: failed and is tried again: %s: %s", task.name, type(error).__name__, error)
        return True

    return worth_repeating
