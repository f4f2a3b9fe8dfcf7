"""Follows a run while its ranks write metrics.jsonl: shows progress, writes event files, reports findings."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Optional

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mae.health.tensorboard import EventFile
from mae.health.verdict import Watch, said
from mae.runs.log import Tail, evaluations, readings
from mae.runs.run import Run

LINE_SECONDS = 60.0  # longest time between two lines of a log, which otherwise has one per epoch
RECENT = 20  # readings whose mean speed gives the time left


class Follower:
    """The launcher calls this about once a second. The returned value changes when the run makes progress.

    Args:
        report_line: called with a line per epoch, or per minute if epochs are longer, and with each warning.
        console: a terminal on which one line is updated in place; other lines are printed above it.
    """

    def __init__(self, run: Run, report_line: Callable[[str], None], console: Optional[Console] = None) -> None:
        self.epochs = run.config.recipe.epochs
        self.report_line = report_line
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.reported, self.reported_at = -1, time.monotonic()
        self.bar: Optional[Progress] = None
        if console is not None and console.is_terminal:
            epoch, text = TextColumn("epoch {task.completed:.2f}/{task.total:g}"), TextColumn("{task.fields[text]}")
            bar = Progress(epoch, BarColumn(20), text, console=console, refresh_per_second=2, transient=True)
            self.line = bar.add_task("", total=self.epochs, text="compiling")
            self.report_line = lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self.bar = bar
            bar.start()
        self.tail, self.events, self.watch = Tail(run.metrics), EventFile(run.directory), Watch(run)

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.events.close()
        if self.bar is not None:
            self.bar.stop()

    def __call__(self) -> Hashable:
        anew, lines = self.tail.read()
        if anew:
            self.recent.clear()
            self.events.restart()
            self.watch.restart()
        if lines:
            self.events.add(lines)
            self._show(readings(lines), evaluations(lines))
            for finding in self.watch.add(readings(lines)):
                self.report_line(f"warning: {said(finding)}")
        return self.tail.inode, self.tail.offset, self.tail.touched

    def _show(self, new: list[dict[str, Any]], measured: list[dict[str, Any]]) -> None:
        self.recent.extend(new)
        for line in measured:
            text = f"epoch {line['epoch']:g}/{self.epochs}: {line['protocol']} {100 * line['top1']:.1f} %"
            self.report_line(f"{text} of {line['images']:,} images, in {line['evaluation_seconds']:.0f} s")
        if not self.recent:
            return
        text = progress(list(self.recent), self.epochs)
        epoch, now = self.recent[-1]["epoch"], time.monotonic()
        if self.bar is not None:
            self.bar.update(self.line, completed=epoch, text=text)
        elif int(epoch) > self.reported or now - self.reported_at >= LINE_SECONDS:
            self.report_line(f"epoch {epoch:.4g}/{self.epochs}: {text}")
            self.reported, self.reported_at = int(epoch), now


def progress(recent: list[dict[str, Any]], epochs: int) -> str:
    """Return loss, learning rate, speed and time left, from the last readings."""
    last = recent[-1]
    text = f"loss {last['loss']:.4f}, lr {last['lr']:.2e}"
    paces = [line["step_seconds"] for line in recent if line["step_seconds"]]
    if not paces:
        return text
    rate = statistics.fmean(line["samples_per_second"] for line in recent if line["samples_per_second"])
    left = statistics.fmean(paces) * last["step"] * (epochs / last["epoch"] - 1)
    return f"{text}, {rate:,.0f} images/s, {duration(left)} left"


def duration(seconds: float) -> str:
    """Return a time in words: 1 d 4 h, 3 h 7 min, 5 min 12 s or 9 s."""
    whole = round(seconds)
    for unit, size, below, of in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // of} {below}"
    return f"{whole} s"
