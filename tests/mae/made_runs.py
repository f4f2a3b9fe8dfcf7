"""Runs for tests: changed configs, what a run has logged, runs that are killed, runs with a planted fault."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mae.config.load import dump_config
from mae.config.sections import Config
from mae.runs import checkpoint
from mae.runs.model_file import load_card, load_weights
from mae.runs.run import Run

TIMING = (
    "samples_per_second",
    "samples_per_second_device",
    "step_seconds",
    "data_wait",
    "device_wait",
    "tflops",
    "mfu",
)
CLOCK = ("seconds", "time")
SECONDS = 120  # that an attempt may take to reach the step at which it is killed


def with_(config: Config, **sections) -> Config:
    """Return the config with changed values, given by section."""
    update = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=update)


def metrics(run_dir: Path) -> list[dict]:
    """Return all lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def lines(run_dir: Path) -> list[dict]:
    """Return the lines of metrics.jsonl without the values that depend on the machine's speed."""
    return [{key: value for key, value in line.items() if key not in (*TIMING, *CLOCK)} for line in metrics(run_dir)]


def steps(run_dir: Path) -> list[int]:
    """Return the steps of the checkpoints that exist, damaged ones included."""
    return [int(path.name) for path in run_dir.glob("checkpoints/*") if path.name.isdigit()]


def curves(run_dir: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Return the curves that TensorBoard itself reads in the run's folder: {tag: [(step, value, wall time)]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(e.step, e.value, e.wall_time) for e in found.Scalars(tag)] for tag in tags}


def rank_pids(run_dir: Path) -> list[int]:
    """Return the process ids of the ranks that a launcher has started."""
    launcher = json.loads((run_dir / "launch" / "launcher.json").read_text())["pid"]
    children = [pid for path in Path(f"/proc/{launcher}/task").glob("*/children") for pid in path.read_text().split()]
    return sorted(int(pid) for pid in children if b"mae.training.engine" in Path(f"/proc/{pid}/cmdline").read_bytes())


def killed(job: Config, workspace: Path, who: str) -> bool:
    """Train until there is one more checkpoint, or until it is being written, then kill with SIGKILL.

    Args:
        who: `rank` (a rank without a launcher), `write` (such a rank while it writes a checkpoint), `launcher`,
            `one rank` or `all ranks` of a launcher.

    Returns:
        whether the kill left a partly written checkpoint.
    """
    run = Run.of(job, workspace)
    run.write_config()
    config = workspace / "config.yaml"
    config.write_text(dump_config(job))
    if who in ("rank", "write"):
        newest = run.newest()
        command = ["mae.training.engine", str(run.directory), *([str(newest)] if newest is not None else [])]
    else:
        command = ["mae", "train", str(config), "--workspace", str(workspace)]
    target = max(steps(run.directory), default=0) + 1
    with (workspace / "log.txt").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)
    deadline = time.monotonic() + SECONDS
    while max(steps(run.directory), default=0) < target:
        assert process.poll() is None, (workspace / "log.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    if who == "write":
        while not list(run.directory.glob("checkpoints/*.partial-*")) and process.poll() is None:
            pass
    else:
        time.sleep(random.random() * 0.03)
    victims = {"one rank": lambda: rank_pids(run.directory)[-1:], "all ranks": lambda: rank_pids(run.directory)}
    pids = victims.get(who, lambda: [process.pid])()
    assert pids, "nothing to kill"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert process.wait(60) != 0, "it was killed before its end"
    return bool(list(run.directory.glob("checkpoints/*.partial-*")))


def planted(job: Config, trained, workspace: Path, name: str, value: float) -> Run:
    """Return a run of `job` whose only checkpoint is the last one of `trained`, with one parameter multiplied."""
    run = Run.of(job, workspace)
    directory = run.checkpoints / str(trained.steps)
    shutil.copytree(trained.checkpoint.parent, directory)
    weights, card = load_weights(directory / "model.safetensors"), load_card(trained.checkpoint)
    weights[name] = weights[name] * np.float32(value)
    save_file(weights, directory / "model.safetensors", metadata={"maeflow": card.model_dump_json()})
    state = checkpoint.load_state(directory).model_dump(exclude={"digests"})
    checkpoint.write_state(directory, **{**state, "inputs": run.inputs})
    return run
