"""Calls a function in child processes under another interpreter, so that the caller's process never loads MindSpore.

Arguments, results and log lines are exchanged as JSON. A pickle of one Python may not be readable by another.

    python -m mae.launch.call FOLDER     what a child runs
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import logging
import os
import shutil
import sys
import tempfile
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from datasets.base.files import write_json
from mae.config.sections import DeviceConfig
from mae.launch.ranks import RanksFailed, rank_main, run_ranks

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    P = ParamSpec("P")

R = TypeVar("R")

CALL, RESULT, LINES = "call.json", "result.json", "lines.jsonl"
LOOK_SECONDS = 0.2  # between two looks for new log lines


def in_child(function: Callable[P, R], device: DeviceConfig, *, near: Path, ranks: int = 1) -> Callable[P, R]:
    """Return `function` as a call in `ranks` processes under `device.python`, which returns rank 0's result.

    The processes are ranks without a scheduler: each has RANK_ID and, for files that they share, MAE_LAUNCH_DIR. They
    end when this process ends. Rank 0's log lines are logged here too.

    Args:
        function: of a module, not of a script. JSON and back must not change its arguments and its result. Its
            annotations are types that pydantic knows, written as Python 3.9 understands them.
        near: folder that receives a temporary one. After RanksFailed it stays, because it has the log.

    Raises (the returned function):
        InputError: the function raised it.
        RanksFailed: a process ended before its work was done.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        near.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=near, prefix=f".{function.__name__.strip('_')}-"))
        given, types = inspect.signature(function).bind(*args, **kwargs).arguments, _types(function)
        values = {name: types[name].dump_python(value, mode="json") for name, value in given.items()}
        write_json(folder / CALL, {"module": function.__module__, "name": function.__name__, "arguments": values})
        lines, keep = _Lines(folder / LINES), False
        try:
            run_ranks(
                ["-m", "mae.launch.call", str(folder)],
                ranks=ranks,
                log_dir=folder,
                run_dir=folder,
                poll=lines.log,
                poll_seconds=LOOK_SECONDS,
                python=device.python,
            )
            result: R = types["return"].validate_python(json.loads((folder / RESULT).read_bytes()))
            return result
        except RanksFailed:
            keep = True
            raise
        finally:
            lines.log()
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)

    return call


def _types(function: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    """Return the types of a function's parameters by name, and under `return` that of its result."""
    return {name: TypeAdapter(kind) for name, kind in typing.get_type_hints(function).items()}


class _Lines:
    """The log lines of a child, which are logged in this process under their own names and levels."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0

    def log(self) -> int:
        """Log the lines that are new, and return the number of bytes read so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.position)
                whole = file.read().rpartition(b"\n")[0]
            for line in whole.splitlines():
                name, level, text = json.loads(line)
                logging.getLogger(name).log(level, "%s", text)
            self.position += len(whole) + bool(whole)
        return self.position


class _Handler(logging.Handler):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = path.open("a", buffering=1)

    def emit(self, record: logging.LogRecord) -> None:
        self.file.write(json.dumps([record.name, record.levelno, record.getMessage()]) + "\n")


def _answer(folder: Path) -> None:
    """Make the call that a folder describes. Rank 0 writes the result."""
    first = os.environ["RANK_ID"] == "0"
    for logger in (logging.getLogger("mae"), logging.getLogger("datasets")):
        logger.setLevel(logging.INFO)
        if first:
            logger.addHandler(_Handler(folder / LINES))
    call = json.loads((folder / CALL).read_bytes())
    function = getattr(importlib.import_module(call["module"]), call["name"])
    types = _types(function)
    result = function(**{name: types[name].validate_python(value) for name, value in call["arguments"].items()})
    if first:
        write_json(folder / RESULT, types["return"].dump_python(result, mode="json"))


if __name__ == "__main__":
    rank_main(functools.partial(_answer, Path(sys.argv[1])))
