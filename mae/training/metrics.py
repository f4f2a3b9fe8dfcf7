"""Measures one rank's training loop and writes metrics.jsonl and metrics/rank_<n>.jsonl (see `mae.runs.log`)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mae.model.sizes import peak_flops, training_flops
from mae.runs.log import EVALUATION, KIND, RANKS, cut
from mae.runs.run import Run

if TYPE_CHECKING:
    from mae.training.update import StepResult

ALIVE_SECONDS = 10.0  # between two signs of life
T = TypeVar("T")


class Metrics:
    """Measures one rank's loop on the host and writes its lines. Nothing here waits for the device.

    Args:
        run: rank 0 writes its metrics.jsonl; with several ranks, each writes its metrics/rank_<n>.jsonl.
        step: the run continues after this step; later lines of an earlier attempt are removed.
        waited: returns the seconds that this rank has waited for others so far; none if that is unknown.
    """

    def __init__(self, run: Run, *, rank: int, step: int, waited: Callable[[], float | None] = lambda: None) -> None:
        self.config, self.rank, self.waited = run.config, rank, waited
        self.notes = {} if run.fallback is None else {"decoder": run.fallback.decoder}  # for each line of metrics.jsonl
        self.path = run.metrics if rank == 0 else None
        self.rank_path = run.directory / RANKS / f"rank_{rank}.jsonl" if run.config.device.ranks > 1 else None
        for path in filter(None, (self.path, self.rank_path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            cut(path, step)
        self.flops = training_flops(run.config.model, run.config.recipe)
        self.peak = peak_flops(run.config_in_force)
        self.started = self.last_time = time.monotonic()
        self.started_at = time.time()  # Unix time; lines are dated by the monotonic clock since
        self.last_step: int | None = None
        self.skips_ranks = False
        self.data_seconds = self.device_seconds = self.rank_seconds = 0.0
        self.touched = 0.0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches and count the time in which the loop waits for them."""
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
        """Touch metrics.jsonl from time to time, so that its readers see progress between two lines."""
        now = time.monotonic()
        if self.path and now - self.touched >= ALIVE_SECONDS:
            self.path.touch()
            self.touched = now

    def waiting(self, read: Callable[[Any], T], result: Any) -> T:
        """Return `read(result)` and count the time until the device has the result."""
        asked = time.monotonic()
        value = read(result)
        self.device_seconds += time.monotonic() - asked
        return value

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Leave the time spent within out of the interval."""
        began = time.monotonic()
        yield
        self.last_time += time.monotonic() - began

    def skip_ranks(self) -> None:
        """Write no line of ranks for the current interval, because rank 0 evaluates and the others wait for it."""
        self.skips_ranks = True

    def write(self, step: int, result: StepResult, *, epoch: float, lr: float) -> None:
        """Write a reading, which ends an interval."""
        now = time.monotonic()
        steps, took = step - (self.last_step or 0), now - self.last_time
        first = self.last_step is None
        shares = {"data_wait": _round(self.data_seconds / took), "device_wait": _round(self.device_seconds / took)}
        if self.rank_path:
            self._write_rank(step, steps, took, shares, skip=first or self.skips_ranks)
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
            finite = math.isfinite(result.grad_norm) and not result.saturated
            line = {
                "step": step,
                "epoch": round(epoch, 4),
                "loss": result.loss,
                "lr": lr,
                "grad_norm": result.grad_norm if finite else None,
                "loss_scale": result.loss_scale,
                "overflows": result.overflows,
                **(dict.fromkeys(speed) if first else speed),
                **self._clock(now),
                **self.notes,
            }
            _append(self.path, line)
        self.last_step, self.last_time = step, now
        self.data_seconds = self.device_seconds = 0.0

    def write_evaluation(self, step: int, *, epoch: float, **values: Any) -> None:
        """Write a measurement of the encoder."""
        if self.path:
            clock = self._clock(time.monotonic())
            _append(self.path, {KIND: EVALUATION, "step": step, "epoch": epoch, **values, **clock})

    def _write_rank(self, step: int, steps: int, took: float, shares: dict[str, float], *, skip: bool) -> None:
        waited = self.waited()
        for_ranks = None if waited is None else _round((waited - self.rank_seconds) / took)
        self.rank_seconds = waited or 0.0
        if not skip and self.rank_path:
            line = {"step": step, "steps": steps, "seconds": _round(took), **shares, "rank_wait": for_ranks}
            _append(self.rank_path, {**line, "host": os.uname().nodename})

    def _clock(self, now: float) -> dict[str, float]:
        seconds = now - self.started
        return {"seconds": round(seconds, 2), "time": round(self.started_at + seconds, 3)}


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def _round(value: float) -> float:
    return float(f"{value:.4g}")
