"""TensorBoard event files of a run, made from metrics.jsonl by the process that follows the run, not by its ranks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mae.runs.log import EVALUATION, KIND, Line

FOLDER = "tensorboard"
GROUPS = {  # tags of the readings
    "train": ("loss", "lr", "grad_norm", "loss_scale", "overflows"),
    "speed": ("samples_per_second", "samples_per_second_device", "step_seconds", "tflops", "mfu"),
    "wait": ("data_wait", "device_wait"),
}


class EventFile:
    """Writes the curves of metrics.jsonl for TensorBoard."""

    def __init__(self, run_directory: Path) -> None:
        self.folder = run_directory / FOLDER
        self.writer: Any = None

    def restart(self) -> None:
        """Start a new file. Its first event makes readers drop everything from earlier files."""
        from tensorboardX import SummaryWriter

        self.close()
        suffix = f".{time.time_ns()}"  # files that start within one second keep their order
        self.writer = SummaryWriter(str(self.folder), purge_step=0, flush_secs=1, filename_suffix=suffix)

    def add(self, lines: list[Line]) -> None:
        """Write lines of metrics.jsonl. A thread has them in the file a second later."""
        for line in lines:
            for tag, value in scalars(line).items():
                self.writer.add_scalar(tag, value, line["step"], walltime=line.get("time"))

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def rewrite(run_directory: Path, lines: list[Line]) -> None:
    """Write the event file of all lines of metrics.jsonl."""
    events = EventFile(run_directory)
    events.restart()
    events.add(lines)
    events.close()


def scalars(line: Line) -> dict[str, float]:
    """Return the values of one line of metrics.jsonl by tag."""
    if line.get(KIND) == EVALUATION:
        return {f"evaluation/{line['protocol']}_top1": line["top1"]}
    named = {f"{group}/{name}": line.get(name) for group, names in GROUPS.items() for name in names}
    return {tag: value for tag, value in {**named, "train/epoch": line["epoch"]}.items() if value is not None}
