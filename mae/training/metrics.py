"""metrics.jsonl: what rank 0 tells of the run every few steps; metrics/rank_<n>.jsonl: how each rank spent its time.

A line of metrics.jsonl without `kind` is a reading of the training:

    step, epoch               updates and epochs done
    loss, grad_norm, lr       of the step; the loss over all ranks, the norm before clipping (none: it overflowed)
    loss_scale, overflows     of the next update; updates skipped so far
    samples_per_second        images a second since the last reading, of all ranks; none in the first interval of an
                              attempt, which compiles the graph, as are all values below that stand for time
    samples_per_second_device the same of one rank
    step_seconds              mean of the interval
    data_wait                 share of it that the loop waited for the next batch
    device_wait               share of it that the loop waited for the device's results at readings
    tflops, mfu               matrix products of a device, 1e12 a second; share of its peak (none: no peak known)
    seconds, time             since the ranks were started; Unix time

The lines of ranks have these shares too, and `rank_wait`, the share that the rank waited for others (none: not known).

A line with `kind: evaluation` is a measurement between epochs (mae/probe.py). A resumed run cuts off what an earlier
attempt wrote behind its checkpoint, so that a step stands here once.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from datasets.base.files import atomic_write
from mae.config.sections import Config
from mae.model.sizes import peak_flops, training_flops

if TYPE_CHECKING:
    from mae.training.update import Report

METRICS, RANKS = "metrics.jsonl", "metrics"
KIND, EVALUATION = "kind", "evaluation"
ALIVE_SECONDS = 10.0  # between two signs of life
T = TypeVar("T")


class Metrics:
    """Measures one rank's loop on the host and writes its lines. Nothing here waits for the device.

    Args:
        run_dir: rank 0 writes metrics.jsonl there; of several ranks each writes metrics/rank_<n>.jsonl.
        step: the run goes on behind it.
        waited: tells the seconds that this rank has waited for others so far, where that is known.
        notes: written into each line of metrics.jsonl.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        *,
        rank: int,
        step: int,
        notes: dict[str, Any] | None = None,
        waited: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.config, self.rank, self.notes, self.waited = config, rank, notes or {}, waited
        self.path = run_dir / METRICS if rank == 0 else None
        self.rank_path = run_dir / RANKS / f"rank_{rank}.jsonl" if config.device.ranks > 1 else None
        for path in filter(None, (self.path, self.rank_path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            cut(path, step)
        self.flops, self.peak = training_flops(config.model, config.recipe), peak_flops(config)
        self.started = self.last_time = time.monotonic()
        self.last_step: int | None = None
        self.skips_ranks = False
        self.data_seconds = self.device_seconds = self.rank_seconds = 0.0
        self.told = 0.0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches, with the time counted in which the loop waits for them."""
        while True:
            asked = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.data_seconds += time.monotonic() - asked
            self.alive()
            yield batch

    def alive(self) -> None:
        """Show whoever follows metrics.jsonl that there is progress where lines are far apart: touch it."""
        now = time.monotonic()
        if self.path and now - self.told >= ALIVE_SECONDS:
            self.path.touch()
            self.told = now

    def waiting(self, read: Callable[[Any], T], result: Any) -> T:
        """`read(result)`, with the time counted that it takes until the device has the result."""
        asked = time.monotonic()
        value = read(result)
        self.device_seconds += time.monotonic() - asked
        return value

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is done within is no part of the interval."""
        began = time.monotonic()
        yield
        self.last_time += time.monotonic() - began

    def skip_ranks(self) -> None:
        """Of the interval that begins no rank has a line: rank 0 evaluates, and the others wait for it."""
        self.skips_ranks = True

    def write(self, step: int, report: Report, *, epoch: float, lr: float) -> None:
        """Add a reading, which ends an interval."""
        now = time.monotonic()
        steps, took = step - (self.last_step or 0), now - self.last_time
        first = self.last_step is None
        shares = {"data_wait": _round(self.data_seconds / took), "device_wait": _round(self.device_seconds / took)}
        if self.rank_path:
            waited, host = self.waited(), os.uname().nodename
            for_ranks = None if waited is None else _round((waited - self.rank_seconds) / took)
            self.rank_seconds = waited or 0.0
            line = {"step": step, "steps": steps, "seconds": _round(took), **shares, "rank_wait": for_ranks}
            if not first and not self.skips_ranks:
                _append(self.rank_path, {**line, "host": host})
            self.skips_ranks = False
        if self.path:
            recipe = self.config.recipe
            rate = steps * recipe.batch_size * recipe.accum_iter / took  # of one rank
            speed = {
                "samples_per_second": round(rate * self.config.device.ranks, 1),
                "samples_per_second_device": round(rate, 1),
                "step_seconds": _round(took / steps),
                **shares,
                "tflops": _round(rate * self.flops / 1e12),
                "mfu": _round(rate * self.flops / self.peak) if self.peak else None,
            }
            line = {
                "step": step,
                "epoch": round(epoch, 4),
                "loss": report.loss,
                "lr": lr,
                "grad_norm": report.grad_norm if math.isfinite(report.grad_norm) and not report.saturated else None,
                "loss_scale": report.loss_scale,
                "overflows": report.overflows,
                **(dict.fromkeys(speed) if first else speed),
                **self._clock(),
                **self.notes,
            }
            _append(self.path, line)
        self.last_step, self.last_time = step, now
        self.data_seconds = self.device_seconds = 0.0

    def write_evaluation(self, step: int, *, epoch: float, **values: Any) -> None:
        """Add a measurement of the encoder."""
        if self.path:
            _append(self.path, {KIND: EVALUATION, "step": step, "epoch": epoch, **values, **self._clock()})

    def _clock(self) -> dict[str, float]:
        return {"seconds": round(time.monotonic() - self.started, 2), "time": round(time.time(), 3)}


class Tail:
    """Reads a file of lines while another process writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = self.inode = self.touched = 0

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """The whole lines that came since the last call; all of them, and True, where the file is another one."""
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none if there is no file."""
    return Tail(path).read()[1]


def readings(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those lines that are no evaluations."""
    return [line for line in lines if KIND not in line]


def evaluations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those lines that are."""
    return [line for line in lines if line.get(KIND) == EVALUATION]


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def cut(path: Path, step: int) -> None:
    """Drop the lines behind `step`, and what a kill has left of one."""
    if path.exists():
        kept = [line for line in read_lines(path) if line["step"] <= step]
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))


def _round(value: float) -> float:
    return float(f"{value:.4g}")
