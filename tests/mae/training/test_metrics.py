"""metrics.jsonl, each rank's own file, TensorBoard's curves, the progress line: of real runs and of planted times."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from mae.config.sections import ComputeConfig, DeviceConfig, ModelConfig, PretrainConfig
from mae.health.follow import Follower, duration, progress
from mae.health.tensorboard import EventFile, scalars
from mae.model.sizes import encoder_flops, mae_flops, peak_flops, training_flops
from mae.runs.log import METRICS, Tail, read_lines
from mae.runs.run import Run
from mae.train import train
from mae.training import metrics as metrics_module
from mae.training.metrics import Metrics
from mae.training.update import StepResult
from tests.mae.made_runs import curves, with_

TIMED = ("samples_per_second", "samples_per_second_device", "step_seconds", "data_wait", "device_wait", "tflops")


@pytest.fixture(scope="module")
def by_two(tiny, tmp_path_factory):
    """Two ranks, of which a device is said to do 0.001 TFLOP/s."""
    job = with_(tiny, device={"ranks": 2, "peak_tflops": 1e-3}, pretrain={"batch_size": 8})
    return job, train(job, workspace=tmp_path_factory.mktemp("by_two"))


def test_a_line_says_how_fast_the_run_is(by_two):
    job, run = by_two
    first, *lines = read_lines(run.run_dir / METRICS)
    assert {first[name] for name in (*TIMED, "mfu")} == {None}, "the first interval compiles"
    for before, line in zip([first, *lines], lines, strict=False):
        steps, rate = line["step"] - before["step"], line["samples_per_second_device"]
        assert line["samples_per_second"] == pytest.approx(2 * rate, abs=0.2)
        assert line["step_seconds"] * rate == pytest.approx(8, rel=0.01)
        assert line["time"] - before["time"] == pytest.approx(line["seconds"] - before["seconds"], abs=0.011)
        assert line["step_seconds"] * steps <= line["seconds"] - before["seconds"] + 0.05
        assert line["data_wait"] >= 0
        assert line["device_wait"] > 0
        assert line["data_wait"] + line["device_wait"] <= 1.001
        flops = training_flops(job.model, job.pretrain)
        assert line["tflops"] == pytest.approx(rate * flops / 1e12, rel=0.01)
        assert line["mfu"] == pytest.approx(line["tflops"] / 1e-3, rel=0.01)


def test_each_rank_writes_how_it_spent_its_time(by_two):
    _, run = by_two
    main = read_lines(run.run_dir / METRICS)[1:]
    files = [read_lines(run.run_dir / "metrics" / f"rank_{rank}.jsonl") for rank in (0, 1)]
    for lines in files:
        assert [line["step"] for line in lines] == [line["step"] for line in main]
        assert all(0 <= line["data_wait"] + line["device_wait"] <= 1.001 for line in lines)
    assert [line["data_wait"] for line in files[0]] == [line["data_wait"] for line in main]
    assert files[0] != files[1]


def test_one_rank_writes_no_second_file(trained):
    assert not (trained.run_dir / "metrics").exists()
    assert {line["mfu"] for line in read_lines(trained.run_dir / METRICS)} == {None}, "no peak is known of a CPU"


REPORT = StepResult(loss=0.5, grad_norm=1.0, loss_scale=1.0, overflows=0, halted=0, saturated=False)


def test_what_the_loop_waited_for(tiny, tmp_path):
    """Sleeps of known length: at least these are counted, and what is done apart is not."""
    metrics = Metrics(Run(tmp_path, tiny), rank=0, step=20)

    def slow():
        for number in range(3):
            time.sleep(0.05)
            yield number

    metrics.write(21, REPORT, epoch=1, lr=0.1)
    began = time.monotonic()
    assert list(metrics.timed(slow())) == [0, 1, 2]
    assert metrics.waiting(lambda value: time.sleep(0.03) or value, 7) == 7
    with metrics.apart():
        time.sleep(1.0)
    metrics.write(24, REPORT, epoch=1.25, lr=0.1)
    took = time.monotonic() - began - 1.0
    line = read_lines(tmp_path / METRICS)[1]
    assert 3 * line["step_seconds"] == pytest.approx(took, abs=0.02)
    assert line["data_wait"] * 3 * line["step_seconds"] == pytest.approx(0.15, abs=0.05)
    assert line["device_wait"] * 3 * line["step_seconds"] == pytest.approx(0.03, abs=0.03)
    assert line["samples_per_second"] == pytest.approx(3 * 16 / took, rel=0.2)


@pytest.mark.parametrize("told", [{"grad_norm": float("inf")}, {"saturated": True}])
def test_what_overflowed_is_no_number_in_json(tiny, tmp_path, told):
    metrics = Metrics(Run(tmp_path, tiny), rank=0, step=0)
    metrics.write(10, REPORT._replace(overflows=1, **told), epoch=1, lr=0.1)
    (line,) = (tmp_path / METRICS).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["grad_norm"] is None


def test_batches_are_progress_though_no_line_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_module, "ALIVE_SECONDS", 0.02)
    metrics = Metrics(Run(tmp_path, tiny), rank=0, step=0)
    with Follower(Run(tmp_path, tiny), lambda line: None) as follow:
        tokens = set()
        for _ in metrics.timed(iter(range(4))):
            time.sleep(0.05)
            tokens.add(follow())
        assert len(tokens) >= 4
        assert follow() == follow(), "without them there is none"


def test_a_resumed_run_cuts_what_lies_behind_its_checkpoint(tiny, tmp_path):
    two = with_(tiny, device={"ranks": 2})
    for step in (0, 20):
        ranks = [Metrics(Run(tmp_path, two), rank=rank, step=step) for rank in (0, 1)]
        for done in (10, 20, 30, 40):
            for metrics in ranks:
                if done > step:
                    metrics.write(done, REPORT, epoch=done / 10, lr=float(step))  # which attempt
        ranks[0].write_evaluation(40, epoch=4.0, protocol="knn", top1=0.5, images=40)
        with (tmp_path / METRICS).open("a") as file:
            file.write('{"step": 50, "epo')  # what a kill leaves
    found = [(line["step"], line.get("lr")) for line in read_lines(tmp_path / METRICS)]
    assert found == [(10, 0), (20, 0), (30, 20), (40, 20), (40, None)]
    assert [line["step"] for line in read_lines(tmp_path / "metrics" / "rank_1.jsonl")] == [20, 40]


def test_a_tail_gives_whole_lines_once_and_sees_another_file(tmp_path):
    path = tmp_path / "lines"
    tail = Tail(path)
    assert tail.read() == (False, [])
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert tail.read() == (True, [{"a": 1}, {"a": 2}])
    assert tail.read() == (False, [])
    with path.open("a") as file:
        file.write(": 3}\n")
    assert tail.read() == (False, [{"a": 3}])
    other = tmp_path / "other"
    other.write_text('{"b": 1}\n' * 9)
    other.replace(path)
    assert tail.read() == (True, [{"b": 1}] * 9)


@pytest.mark.parametrize(
    ("name", "device", "compute", "peak"),
    [
        ("a 910A in its own type", {"target": "Ascend"}, {}, 256e12),
        ("float32, of which nothing is published", {"target": "Ascend"}, {"dtype": "float32"}, None),
        ("a CPU", {}, {}, None),
        ("what the config says", {"peak_tflops": 0.4}, {}, 0.4e12),
    ],
)
def test_the_peak_that_mfu_is_measured_against(tiny, name, device, compute, peak):
    config = tiny.model_copy(update={"device": DeviceConfig(**device), "compute": ComputeConfig(**compute)})
    assert peak_flops(config) == peak, name


def test_work_of_an_image(tiny):
    model = ModelConfig()
    assert training_flops(model, PretrainConfig()) == 3 * mae_flops(model, 0.75) == pytest.approx(58.69e9, rel=1e-3)
    assert training_flops(model, tiny.finetune) == 3 * encoder_flops(model) == pytest.approx(105.4e9, rel=1e-3)
    assert training_flops(model, tiny.linear) == encoder_flops(model)


def eventually(read, expected):
    """Return what `read` returns once it is `expected`; the events get into their file within about a second."""
    deadline = time.monotonic() + 10
    while (found := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == expected
    return found


def expected_curves(run_dir):
    found = {}
    for line in read_lines(run_dir / METRICS):
        for tag, value in scalars(line).items():
            found.setdefault(tag, []).append((line["step"], float(np.float32(value)), line["time"]))
    return found


def test_tensorboard_reads_what_the_metrics_say(by_two):
    _, run = by_two
    assert len(list((run.run_dir / "tensorboard").iterdir())) == 1
    found = curves(run.run_dir)
    assert found == expected_curves(run.run_dir)
    assert {"train/loss", "train/grad_norm", "speed/mfu", "wait/data_wait"} <= set(found)
    assert [step for step, *_ in found["train/loss"]] == [line["step"] for line in read_lines(run.run_dir / METRICS)]


def test_event_files_have_no_step_twice_after_kills(tiny, tmp_path):
    """A follower that dies, a run that goes back, an evaluation, a follower that sees a file being replaced."""
    for start, end in ((0, 40), (20, 30), (20, 60)):
        follower = Follower(Run(tmp_path, tiny), [].append)
        follower()  # sees what the attempt before has left
        metrics = Metrics(Run(tmp_path, tiny), rank=0, step=start)
        for step in range(start + 10, end + 1, 10):
            metrics.write(step, REPORT._replace(loss=1 / (start + step)), epoch=step / 10, lr=0.1)
            follower()
        metrics.write_evaluation(end, epoch=end / 10, protocol="knn", top1=0.5, images=40, evaluation_seconds=0.1)
        follower()
        expected = expected_curves(tmp_path)
        found = eventually(lambda: curves(tmp_path), expected)  # while the file is still open
    steps = [step for step, *_ in found["train/loss"]]
    assert steps == [10, 20, 30, 40, 50, 60]
    assert [step for step, *_ in found["evaluation/knn_top1"]] == [60]


def test_a_reader_that_is_looking_drops_what_was_begun_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    line = {"time": 1.0, "epoch": 1.0, **dict.fromkeys(("loss", "lr", "grad_norm", "loss_scale", "overflows"), 1.0)}
    lines = [{**line, **dict.fromkeys((*TIMED, "mfu")), "step": step} for step in (10, 20, 30)]
    events = EventFile(tmp_path)
    events.restart()
    events.add(lines)
    reader = EventAccumulator(str(tmp_path / "tensorboard"))

    def shown():
        loss = "train/loss"
        return [event.step for event in reader.Scalars(loss)] if loss in reader.Reload().Tags()["scalars"] else []

    eventually(shown, [10, 20, 30])
    events.restart()
    events.add(lines[:2])
    eventually(shown, [10, 20])


def reading(step, **values):
    """A line in the middle of a run of 10 steps an epoch."""
    common = {"epoch": step / 10, "loss": 0.5, "lr": 1e-3, "samples_per_second": 160.0, "step_seconds": 0.1}
    return {"step": step, **common, **values}


@pytest.mark.parametrize(
    ("name", "recent", "text"),
    [
        ("compiling", [reading(10, step_seconds=None)], "loss 0.5000, lr 1.00e-03"),
        ("one reading", [reading(10)], "loss 0.5000, lr 1.00e-03, 160 images/s, 1 min 39 s left"),
        (
            "a resumed run: its own speed counts, not its start",
            [reading(900, step_seconds=None), reading(910), reading(920, step_seconds=0.3)],
            "loss 0.5000, lr 1.00e-03, 160 images/s, 16 s left",
        ),
        ("the end", [reading(1000)], "loss 0.5000, lr 1.00e-03, 160 images/s, 0 s left"),
    ],
)
def test_progress_by_the_last_readings(name, recent, text):
    assert progress(recent, 100) == text, name


def test_durations():
    found = [duration(seconds) for seconds in (0.4, 59.4, 60, 3599, 3600, 86399, 86400, 11 * 86400 + 7200)]
    told = ["0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "1 d 0 h", "11 d 2 h"]
    assert found == told


def write(run_dir, *lines):
    clock = {"time": 1.0, "seconds": 1.0, "grad_norm": 1.0, "loss_scale": 1.0, "overflows": 0}
    rest = dict.fromkeys(("samples_per_second_device", "data_wait", "device_wait", "tflops", "mfu"))
    with (run_dir / METRICS).open("a") as file:
        file.writelines(json.dumps({**clock, **rest, **line}) + "\n" for line in lines)


def test_a_log_has_a_line_per_epoch_and_per_minute(tiny, tmp_path, monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr("mae.health.follow.time.monotonic", lambda: now[0])
    follower = Follower(Run(tmp_path, with_(tiny, pretrain={"epochs": 100})), said.append)
    for second, step in ((1, 5), (2, 9), (3, 11), (4, 12), (63, 13), (64, 14), (65, 20)):
        now[0] = second
        write(tmp_path, reading(step))
        follower()
    epochs = [re.match(r"epoch ([\d.]+)/100: loss 0.5000, ", line).group(1) for line in said]
    assert epochs == ["0.5", "1.1", "1.3", "2"]
    assert follower() == follower(), "a standstill"


def test_a_terminal_has_one_line_and_a_file_has_none(tiny, tmp_path):
    screen, said = StringIO(), []
    console = Console(file=screen, force_terminal=True, width=100)
    with Follower(Run(tmp_path, with_(tiny, pretrain={"epochs": 100})), said.append, console) as follower:
        for step in (5, 25):
            write(tmp_path, reading(step))
            follower()
            follower.bar.refresh()
        follower.report_line("[not markup] a line that stays")
    text = screen.getvalue()
    assert "epoch 0.50/100" in text
    assert "epoch 2.50/100" in text
    assert "160 images/s, 1 min 38 s left" in text
    assert "[not markup] a line that stays" in text
    assert said == []
    plain = Console(file=StringIO())
    assert Follower(Run(tmp_path, tiny), said.append, plain).bar is None


def test_two_runs_at_once_have_files_of_their_own(tiny, tmp_path):
    """The follower shares no state: two of them in threads, as two flows in one process."""

    def follow(name):
        (tmp_path / name).mkdir()
        with Follower(Run(tmp_path / name, tiny), [].append) as follower:
            for step in range(10, 200, 10):
                write(tmp_path / name, reading(step, loss=len(name)))
                follower()
        return [value for _, value, _ in curves(tmp_path / name)["train/loss"]]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(follow, ("a", "bb"))) == [[1.0] * 19, [2.0] * 19]
