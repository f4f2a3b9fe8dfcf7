"""TensorBoard event files of a run, made from metrics.jsonl by the process that follows it, not by the ranks.

tensorboardX writes them: 0.1 MB, and of its dependencies (NumPy, packaging, protobuf) all are here for others.
TensorBoard itself, which also can, brings a server, gRPC and a compiled data server, and is only needed to look.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mae.training.metrics import EVALUATION, KIND

FOLDER = "tensorboard"
GROUPS = {  # tags of the readings; what is not named here is no curve
    "train": ("loss", "lr", "grad_norm", "loss_scale", "overflows"),
    "speed": ("samples_per_second", "samples_per_second_device", "step_seconds", "tflops", "mfu"),
    "wait": ("data_wait", "device_wait"),
}


class EventFile:
    """The curves of metrics.jsonl for TensorBoard.

    Lines are added as they come. Where a resumed run has cut metrics.jsonl, `restart` begins the file again, so that no
    step stands in it twice; a TensorBoard that is looking drops what it had, because the new file says so.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / FOLDER
        self.writer: Any = None

    def restart(self) -> None:
        """Begin again, without what was written before."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = list(self.folder.glob("events.out.tfevents.*"))
        self.writer = EventsWriter(str(self.folder / "events"), f".{_next(earlier):06}")
        self.writer.write_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        self.writer.flush()
        for path in earlier:
            if path.stat().st_size:
                path.write_bytes(b"")  # a TensorBoard that is reading it would not go on from a file that is gone
            else:
                path.unlink()

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Write lines of metrics.jsonl; they are on the disk when this returns."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        for line in lines:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()]
            self.writer.write_event(Event(wall_time=line.get("time"), step=line["step"], summary=Summary(value=values)))
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def rewrite(run_dir: Path, lines: list[dict[str, Any]]) -> None:
    """The event file of all lines of metrics.jsonl."""
    events = EventFile(run_dir)
    events.restart()
    events.add(lines)
    events.close()


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """Value by tag of one line of metrics.jsonl."""
    if line.get(KIND) == EVALUATION:
        return {f"evaluation/{line['protocol']}_top1": line["top1"]}
    named = {f"{group}/{name}": line.get(name) for group, names in GROUPS.items() for name in names}
    return {tag: value for tag, value in {**named, "train/epoch": line["epoch"]}.items() if value is not None}


def _next(earlier: list[Path]) -> int:
    """A number behind those that earlier files' names end in: readers go from file to file by name."""
    return 1 + max((int(path.suffix[1:]) for path in earlier if path.suffix[1:].isdigit()), default=0)
