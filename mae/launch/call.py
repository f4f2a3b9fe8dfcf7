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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from datasets.base.files import write_json
from mae.config.sections import DeviceConfig
from mae.launch.ranks import RanksFailed, rank_main, run_child

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    P = ParamSpec("P")

R = TypeVar("R")

CALL, RESULT = "call.json", "result.json"
MARK = "mae-log "  # begins a line of a child's output that is a log record: level, name and JSON of the text


def in_child(
    function: Callable[P, R], device: DeviceConfig, *, near: Path, ranks: int = 1, devices: Sequence[int] = ()
) -> Callable[P, R]:
    """Return `function` as a call in `ranks` processes under `device.python`, which returns rank 0's result.

    The processes do not communicate. Each has RANK_ID and, for files that they share, MAE_LAUNCH_DIR. They end when
    this process ends. What rank 0 logs is logged here too.

    Args:
        function: of a module, not of a script. JSON and back must not change its arguments and its result. Its
            annotations are types that pydantic knows, written as Python 3.9 understands them.
        near: folder that receives a temporary one. After RanksFailed it stays, because it has the log.
        devices: the NPU of each process; empty on CPUs.

    Raises (the returned function):
        InputError: the function raised it, or `mae.launch.run_child` did.
        RanksFailed: a process ended before its work was done.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        near.mkdir(parents=True, exist_ok=True)
        name, types, keep = function.__name__.strip("_"), _types(function), False
        folder = Path(tempfile.mkdtemp(dir=near, prefix=f".{name}-"))
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        values = {key: types[key].dump_python(value, mode="json") for key, value in given.items()}
        write_json(folder / CALL, {"module": function.__module__, "name": function.__name__, "arguments": values})
        try:
            run_child(
                "mae.launch.call",
                [str(folder)],
                log_dir=folder,
                owner=f"{name} for {near}",
                ranks=ranks,
                devices=devices,
                python=device.python,
                report_line=_log,
            )
            result: R = types["return"].validate_python(json.loads((folder / RESULT).read_bytes()))
            return result
        except RanksFailed:
            keep = True
            raise
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)

    return call


def _types(function: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    """Return the types of a function's parameters by name, and under `return` that of its result."""
    return {name: TypeAdapter(kind) for name, kind in typing.get_type_hints(function).items()}


def _log(line: str) -> None:
    """Log a line of a child's output in this process, under its own name and level, if it is a log record."""
    if line.startswith(MARK):
        level, name, text = line[len(MARK) :].split(" ", 2)
        logging.getLogger(name).log(int(level), "%s", json.loads(text))


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"{MARK}{record.levelno} {record.name} {json.dumps(record.getMessage())}", flush=True)


def _answer(folder: Path) -> None:
    """Make the call that a folder describes. Rank 0 writes the result."""
    for name in ("mae", "datasets"):
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(_Handler())
    call = json.loads((folder / CALL).read_bytes())
    function = getattr(importlib.import_module(call["module"]), call["name"])
    types = _types(function)
    result = function(**{name: types[name].validate_python(value) for name, value in call["arguments"].items()})
    if os.environ["RANK_ID"] == "0":
        write_json(folder / RESULT, types["return"].dump_python(result, mode="json"))


if __name__ == "__main__":
    rank_main(functools.partial(_answer, Path(sys.argv[1])))
