"""SIGKILL at random moments, twenty-one times: what goes on from there ends as if nothing had happened, to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mae.config.load import dump_config
from mae.runs import checkpoint
from mae.train import _resolved, run_directory, train
from tests.mae.test_train import with_

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
SECONDS = 120  # that an attempt may take to come to the step at which it is killed
RECIPE = {"epochs": 30, "ema": 0.9, "checkpoint_epochs": 50, "checkpoint_steps": 5}
MOMENT = 3.0  # seconds: a rank has begun to train by then, or it has not
KILLS = {  # 18 and 3; "write" is a rank that is writing a checkpoint, "moment" one anywhere, before its first step too
    "alone": ["rank", "moment", "write", "moment", "launcher", "moment", "write", "moment", "rank"] * 2,
    "by two": ["one rank", "all ranks", "launcher"],
}


def lines(run_dir):
    """metrics.jsonl without what depends on the machine's speed."""
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in (*TIMING, *CLOCK)} for line in found]


def steps(run_dir):
    """Of the checkpoints that stand there."""
    return [int(path.name) for path in run_dir.glob("checkpoints/*") if path.name.isdigit()]


def ranks(run_dir):
    """Pids of the ranks that a launcher has started."""
    guards = [json.loads(path.read_text())["guard"] for path in sorted(run_dir.glob("launch/rank_*.json"))]
    return [int(Path(f"/proc/{guard}/task/{guard}/children").read_text()) for guard in guards]


def killed(job, workspace, who, rng):
    """Train until a checkpoint of a random step ahead is there, or is being written, and kill."""
    run_dir = run_directory(job, workspace=workspace)
    run_dir.mkdir(parents=True, exist_ok=True)
    config = workspace / "config.yaml"
    config.write_text(dump_config(job))
    direct = who in ("rank", "write", "moment")  # a rank without launcher
    if direct:
        (run_dir / "config.yaml").write_text(dump_config(job))
        command = ["mae.training.engine", str(run_dir)]
    else:
        command = ["mae", "train", str(config), "--workspace", str(workspace)]
    target = max(steps(run_dir), default=0) + rng.choice([0, 5]) + 1
    with (workspace / "log.txt").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)
    deadline = time.monotonic() + SECONDS
    if who == "moment":
        before, moment, target = max(steps(run_dir), default=0), time.monotonic() + rng.random() * MOMENT, 0
        while time.monotonic() < moment and max(steps(run_dir), default=0) == before:
            time.sleep(0.0005)
    while max(steps(run_dir), default=0) < target:
        assert process.poll() is None, (workspace / "log.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    if who == "write":
        while not list(run_dir.glob("checkpoints/*.partial-*")) and process.poll() is None:
            pass
    else:
        time.sleep(rng.random() * 0.03)
    victims = {"one rank": lambda: ranks(run_dir)[-1:], "all ranks": lambda: ranks(run_dir)}
    for pid in victims.get(who, lambda: [process.pid])():
        os.kill(pid, signal.SIGKILL)
    code = process.wait(60)
    assert code != 0, "it was killed before its end"
    return bool(list(run_dir.glob("checkpoints/*.partial-*")))


def chain(job, folder, name):
    """An undisturbed run, and one that is killed again and again; how many half checkpoints it left."""
    rng = random.Random(name)
    whole = train(job, workspace=folder / "whole")
    workspace = folder / "killed"
    workspace.mkdir()
    halves = [killed(job, workspace, who, rng) for who in KILLS[name]]
    return whole, train(job, workspace=workspace), sum(halves)


@pytest.fixture(scope="module")
def chains(tiny, trained, tmp_path_factory):
    alone = with_(tiny, pretrain=RECIPE)
    tuned = {"epochs": 5, "batch_size": 4, "accum_iter": 2, "drop_path": 0.3, "checkpoint_steps": 5}
    by_two = with_(tiny, finetune=tuned, device={"ranks": 2})
    by_two = by_two.model_copy(update={"task": "finetune", "init": str(trained.checkpoint)})
    jobs = {"alone": _resolved(alone), "by two": _resolved(by_two)}
    with ThreadPoolExecutor(2) as pool:
        folders = {name: tmp_path_factory.mktemp(name.replace(" ", "_")) for name in jobs}
        running = {name: pool.submit(chain, job, folders[name], name) for name, job in jobs.items()}
        return {name: future.result() for name, future in running.items()}


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_leaves_no_trace_of_it(chains, name):
    whole, killed_run, halves = chains[name]
    assert lines(killed_run.run_dir) == lines(whole.run_dir)
    states = [checkpoint.load_state(run.checkpoint.parent) for run in (killed_run, whole)]
    assert states[0] == states[1]  # with the digests of weights, averages, moments and loss scale
    assert halves > 0 or name != "alone", "no kill met a checkpoint that was being written"
    assert sorted(steps(killed_run.run_dir)) == sorted(steps(whole.run_dir))
    assert not list(killed_run.run_dir.glob("checkpoints/*.partial-*"))
