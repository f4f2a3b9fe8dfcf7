"""Reads a run's log: metrics.jsonl, which rank 0 writes, and metrics/rank_<n>.jsonl, how each rank spent its time.

A line of metrics.jsonl without `kind` is a reading of the training:

    step, epoch               updates and epochs completed
    loss, grad_norm, lr       of the step; the loss over all ranks, the norm before clipping (none: it overflowed)
    loss_scale, overflows     loss scale of the next update; updates skipped so far
    samples_per_second        images per second of all ranks since the last reading. It is none in the first interval of
                              an attempt, which compiles the graph; so are all values below that depend on time
    samples_per_second_device the same of one rank
    step_seconds              mean of the interval
    data_wait                 share of the interval in which the loop waited for the next batch
    device_wait               share of the interval in which the loop waited for the device's results
    tflops, mfu               matrix products of a device, in 1e12 per second; share of its peak (none: no known peak)
    seconds, time             since the ranks were started; Unix time

The lines of ranks have these shares too, and `rank_wait`, the share in which the rank waited for others (none: not
known).

A line with `kind: evaluation` is a measurement between epochs (mae/training/probe.py). A resumed run removes the lines
that an earlier attempt wrote after its checkpoint, so each step has one line.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Optional

from pydantic import BaseModel, Field

from datasets.base.files import atomic_write

METRICS, RANKS = "metrics.jsonl", "metrics"
KIND, EVALUATION = "kind", "evaluation"

Line = dict[str, Any]


class Entry(BaseModel, allow_inf_nan=False):
    """What every line of metrics.jsonl has. This type and the next two name the values that pages show."""

    kind: Optional[str] = None
    step: int
    epoch: float


class Reading(Entry):
    """A reading of the training."""

    loss: float
    lr: float
    samples_per_second: Optional[float]
    seconds: float


class Measurement(Entry):
    """An evaluation between epochs. `top1` is a share of `images`."""

    protocol: str
    top1: float = Field(ge=0, le=1)
    images: int


class Tail:
    """Reads a file of lines while another process writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = self.inode = self.touched = 0

    def read(self) -> tuple[bool, list[Line]]:
        """Return the complete lines since the last call. If the file was replaced: True, and all of its lines."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return False, []
        with file:
            found = os.fstat(file.fileno())
            self.touched = found.st_mtime_ns
            anew = found.st_ino != self.inode or found.st_size < self.offset
            if anew:
                self.inode, self.offset = found.st_ino, 0
            file.seek(self.offset)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return anew, []
        self.offset += len(whole) + 1
        return anew, [json.loads(line) for line in whole.split(b"\n")]


def read_lines(path: Path) -> list[Line]:
    """Return all complete lines; an empty list if there is no file."""
    return Tail(path).read()[1]


def readings(lines: list[Line]) -> list[Line]:
    """Return the lines that are readings of the training."""
    return [line for line in lines if KIND not in line]


def evaluations(lines: list[Line]) -> list[Line]:
    """Return the lines that are measurements between epochs."""
    return [line for line in lines if line.get(KIND) == EVALUATION]


def cut(path: Path, step: int) -> None:
    """Remove the lines after `step`, and the incomplete line that a kill can leave."""
    if path.exists():
        kept = [line for line in read_lines(path) if line["step"] <= step]
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))
