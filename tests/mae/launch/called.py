"""Functions that tests call in child processes. They need no MindSpore."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

from datasets.base.errors import InputError
from mae.config.sections import Config

logger = logging.getLogger("mae.called")


class Pair(NamedTuple):
    path: Path
    share: float


def described(config: Config, pairs: list[Pair], number: float = 3) -> dict[str, float]:
    """Log two lines, and return the sum of the shares and the number."""
    logger.info("rank %s of %s\nsecond line", os.environ["RANK_ID"], config.name)
    logger.warning("%d pairs", len(pairs))
    assert all(isinstance(pair.path, Path) for pair in pairs)
    return {"sum": sum(pair.share for pair in pairs), "number": number, "pid": os.getpid()}


def refused(path: Path) -> None:
    raise InputError(path, expected="a", found="b", todo="c")


def killed() -> None:
    os.kill(os.getpid(), 9)


def endless(started: Path) -> None:
    """Write this process's id to a file and sleep."""
    started.write_text(str(os.getpid()))
    time.sleep(600)
