"""metrics.jsonl: one line of progress per few steps, written by rank 0, read by whoever follows the run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.stage import atomic_write

if TYPE_CHECKING:
    from .objective import Report


class MetricsWriter:
    """Appends lines; the run goes on after `step`, so what an earlier attempt wrote behind it is cut off."""

    def __init__(self, path: Path, *, step: int, notes: dict[str, Any] | None = None) -> None:
        """`notes` are written into each line."""
        self.path, self.notes = path, notes or {}
        self.started = self.last_time = time.monotonic()
        self.last_step: int | None = None
        if path.exists():
            whole_lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in whole_lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            atomic_write(path, "".join(kept))

    def write(self, step: int, report: Report, *, epoch: float, lr: float, images_per_step: int) -> None:
        """Add a line. `samples_per_second` counts all ranks; the first interval, which compiles, has none."""
        now = time.monotonic()
        rate = None
        if self.last_step is not None:
            rate = round((step - self.last_step) * images_per_step / (now - self.last_time), 1)
        self.last_step, self.last_time = step, now
        line = {
            "step": step,
            "epoch": round(epoch, 4),
            "loss": report.loss,
            "lr": lr,
            "grad_norm": report.grad_norm,
            "loss_scale": report.loss_scale,
            "overflows": report.overflows,
            "samples_per_second": rate,
            "seconds": round(now - self.started, 2),
            **self.notes,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line; none if there is none yet."""
    if not path.exists():
        return None
    text = path.read_text().rpartition("\n")[0].rpartition("\n")[2]
    return json.loads(text) if text else None
