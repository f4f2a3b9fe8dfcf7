"""Each finding on a curve made for it, none on healthy ones: made, just below a threshold, and really trained."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mae.config.load import dump_config
from mae.health.follow import Follower
from mae.health.tensorboard import FOLDER
from mae.health.verdict import FILE, judge, load_verdict, looks, verdict
from mae.launch.ranks import run_ranks
from mae.runs.history import past_runs, recipe_history, remember
from mae.runs.log import METRICS, read_lines
from mae.runs.run import Run
from mae.train import _resolved, train
from tests.mae.made_runs import curves, with_

RECORDED = Path(__file__).with_name("recorded")  # metrics.jsonl of the tiny job, trained for 30 epochs
EPOCHS, UPDATES = 100, 100  # of the made curves; a reading every 10 updates


def made(*, until=1.0, seed=0, **columns):
    """Readings of a healthy pre-training up to a share of it; `columns` replace values, by arrays or functions of the
    progress."""
    progress = np.arange(10, EPOCHS * UPDATES + 1, 10) / (EPOCHS * UPDATES)
    rng = np.random.default_rng(seed)
    healthy = {
        "loss": lambda p: 0.42 + 0.6 * np.exp(-p / 0.08) - 0.03 * p + rng.normal(0, 0.008, len(p)),
        "lr": lambda p: 1e-3 * np.minimum(p / 0.05, 0.5 + 0.5 * np.cos(np.pi * np.maximum(p - 0.05, 0) / 0.95)),
        "grad_norm": lambda p: (
            0.3 + 1.2 * np.exp(-p / 0.05) + rng.exponential(0.1, len(p)) * (rng.random(len(p)) > 0.9)
        ),
        "overflows": lambda p: np.floor(p * EPOCHS * UPDATES / 2000),
        "step_seconds": lambda p: np.full(len(p), 0.2),
        "samples_per_second": lambda p: np.full(len(p), 80.0),
        "data_wait": lambda p: np.full(len(p), 0.02),
        "device_wait": lambda p: np.full(len(p), 0.1),
    }
    values = {name: np.broadcast_to(f(progress), len(progress)) for name, f in {**healthy, **columns}.items()}
    count = round(until * len(progress))
    rows = [
        {"step": round(p * EPOCHS * UPDATES), "epoch": p * EPOCHS, **{name: float(v[n]) for name, v in values.items()}}
        for n, p in enumerate(progress[:count])
    ]
    rows[0] |= {"step_seconds": None, "data_wait": None, "device_wait": None}  # it compiled
    return rows


def write(run_dir: Path, rows, ranks=()):
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, waits in enumerate(ranks):
        (run_dir / "metrics").mkdir(exist_ok=True)
        for_data, for_ranks = waits if isinstance(waits, tuple) else (waits, None)
        shared = {"steps": 10, "seconds": 2.0, "device_wait": 0.1, "host": f"server-{number // 8}"}
        lines = [{"step": row["step"], **shared, "data_wait": for_data, "rank_wait": for_ranks} for row in rows[1:]]
        (run_dir / "metrics" / f"rank_{number}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return run_dir


def judged(run_dir, job, **options):
    """The verdict on a folder with metrics of a job."""
    return verdict(Run(run_dir, job), **options)


@pytest.fixture
def job(tiny):
    """The config of the made curves."""
    return with_(tiny, pretrain={"epochs": EPOCHS, "warmup_epochs": 5})


def late(value, start=0.5):
    """A column that is healthy first."""
    return lambda p: np.where(p > start, value, 0.02)


def times(name, factor, start):
    """A column that is another from some point on."""
    return lambda p: np.array([row[name] for row in made()]) * np.where(p > start, factor, 1)


def noisy(level, size):
    return lambda p: np.where(p < 0.2, 1 - 2.5 * p, level) + np.random.default_rng(1).normal(0, size, len(p))


NO_GAIN = np.arange(1000) % 2 * 0.004 + 0.98


@pytest.mark.parametrize(
    ("name", "columns", "ranks", "finding", "key", "first"),
    [
        ("input too slow", {"data_wait": late(0.35)}, (), "data_starvation", "data.workers", (5500, 5700)),
        ("one rank's input", {}, [0.02, 0.02, 0.3, 0.02], "slow_rank", "data.workers", (1000, 1200)),
        ("of two ranks one", {}, [0.15, 0.02], "slow_rank", "data.workers", (2200, 2400)),
        ("one that computes", {}, [(0, 0.2), (0, 0.2), (0, 0.02)], "slow_rank", "device.ranks", (1500, 1800)),
        ("one, by its input", {}, [(0.25, 0.01), (0.02, 0.2)], "slow_rank", "data.workers", (1400, 1700)),
        ("nothing learned", {"loss": lambda p: NO_GAIN}, (), "not_learning", "pretrain.blr", (2000, 2000)),
        ("the loss has risen", {"loss": lambda p: 1 + p}, (), "not_learning", "pretrain.blr", (2000, 2000)),
        ("it stands still", {"loss": noisy(0.5, 0.001)}, (), "plateau", "pretrain.blr", (4000, 4200)),
        (
            "norm times 30",
            {"grad_norm": times("grad_norm", 30, 0.4)},
            (),
            "exploding_gradient",
            "pretrain.clip_grad",
            0,
        ),
        (
            "every 50th update overflows",
            {"overflows": lambda p: np.floor(np.maximum(p - 0.3, 0) * 200)},
            (),
            "repeated_overflows",
            "compute.decoder_float32",
            (3400, 4000),
        ),
    ],
)
def test_a_finding(job, tmp_path, name, columns, ranks, finding, key, first):
    found = judged(write(tmp_path / "runs" / "r", made(**columns), ranks), job).findings
    assert [f.name for f in found] == [finding], name
    low, high = first or (4010, 4200)
    assert low <= found[0].first_step <= high, name
    assert found[0].key == key
    assert key in found[0].message
    assert all(np.isfinite(list(found[0].figures.values())))


def test_figures_and_words(job, tmp_path):
    """The numbers that stand in a finding are those of the curve."""
    rows = made(data_wait=lambda p: np.full(len(p), 0.25), until=0.5)
    result = judged(write(tmp_path / "runs" / "r", rows, [0.02] * 15 + [0.4]), job)
    slow, starved = result.findings
    lost = 0.25 * 2 * 499
    assert starved.figures == {"data_wait": 0.25, "seconds_lost": pytest.approx(lost), "workers": 1}
    assert (
        f"the loop waited for batches 25% of the time, {lost:,.0f} s so far: raise data.workers (1)" in starved.message
    )
    lost = pytest.approx(0.38 * 2 * 499)
    assert slow.figures == {"rank": 15, "behind": 0.38, "data_wait": 0.4, "others": 0.02, "seconds_lost": lost}
    said = "rank 15 on server-1 is 38% of the time behind the others, because it waits for batches 40% of the time"
    assert slow.message.startswith(said)
    assert (starved.last_step, result.step, result.epoch) == (5000, 5000, 50)
    assert result.lines()[0].startswith("verdict at epoch 50: 2 findings; no reference for the loss: no earlier run")
    assert [line.split(" (")[0] for line in result.lines()[1:]] == ["slow_rank", "data_starvation"]


def test_what_is_over_stays_in_the_verdict(job, tmp_path):
    waits = {"data_wait": lambda p: np.where((p > 0.3) & (p < 0.5), 0.5, 0.01)}
    (found,) = judged(write(tmp_path / "runs" / "r", made(**waits)), job).findings
    assert 3000 < found.first_step < 3700
    assert 5000 <= found.last_step < 5300


@pytest.mark.parametrize(
    ("name", "columns", "ranks"),
    [
        ("as it should be", {}, ()),
        ("the same for each of eight ranks", {}, [0.02] * 8),
        ("input below the threshold", {"data_wait": late(0.18)}, [0.18, 0.18]),
        ("a few slow batches", {"data_wait": lambda p: np.where(np.arange(len(p)) % 25 == 0, 0.9, 0.02)}, ()),
        ("less than a minute", {"data_wait": late(0.9), "step_seconds": lambda p: p * 0 + 0.01}, ()),
        ("a host ahead of its device", {"data_wait": late(0.7), "device_wait": late(0.28)}, ()),
        ("one rank a little slower", {}, [0.02, 0.1]),
        ("noise", {"loss": lambda p: 0.9 - 0.4 * p + np.random.default_rng(5).normal(0, 0.1, len(p))}, ()),
        ("a flat end", {"loss": lambda p: np.maximum(1 - p, 0.35)}, ()),
        ("a slow fall", {"loss": lambda p: np.where(p < 0.2, 1 - 2.5 * p, 0.505 - 0.025 * p)}, ()),
        ("single spikes", {"grad_norm": lambda p: np.where(np.arange(len(p)) % 7 == 0, 50.0, 0.3)}, ()),
        ("norms that grow", {"grad_norm": lambda p: 0.3 * np.exp(4 * p)}, ()),
        ("overflows in the norm", {"grad_norm": lambda p: np.where(np.arange(len(p)) % 9 == 0, np.inf, 0.3)}, ()),
        ("the scale's search", {"overflows": lambda p: np.minimum(p * 1000, 14) + np.floor(p * 5)}, ()),
    ],
)
def test_no_finding(job, tmp_path, name, columns, ranks):
    found = judged(write(tmp_path / "runs" / "r", made(**columns), ranks), job).findings
    assert found == [], name


@pytest.mark.parametrize("task", ["finetune", "linear"])
def test_a_flat_end_of_a_classifier_is_no_plateau(tiny, tmp_path, task):
    recipe = getattr(tiny, task).model_copy(update={"epochs": EPOCHS, "warmup_epochs": 5})
    job = tiny.model_copy(update={"task": task, task: recipe})
    rows = made(loss=noisy(0.5, 0.001))
    assert judged(write(tmp_path / "runs" / "r", rows), job).findings == []


def test_knobs_depend_on_what_is_set(job, tmp_path):
    clipped = with_(job, pretrain={"clip_grad": 1.0}, compute={"decoder_float32": True})
    rows = made(grad_norm=times("grad_norm", 30, 0.4), overflows=lambda p: np.floor(p * 200))
    found = judged(write(tmp_path / "runs" / "r", rows), clipped).findings
    assert {f.name: f.key for f in found} == {
        "repeated_overflows": "compute.dtype",
        "exploding_gradient": "pretrain.blr",
    }


def test_ranks_of_an_attempt_before_do_not_count(job, tmp_path):
    """Three ranks wrote until step 3000, two go on: the third is not slow, it is not there."""
    run_dir = write(tmp_path / "runs" / "r", made(), [0.02, 0.02, 0.02])
    path = run_dir / "metrics" / "rank_2.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, "data_wait": 0.5}) + "\n" for line in lines if line["step"] <= 150))
    assert judged(run_dir, job).findings == []


def test_warnings_come_once_while_the_run_goes_on(job, tmp_path):
    """The same looks as the verdict's at the end, in whatever pieces lines come; a resumed run warns no second time."""
    rows = made(data_wait=late(0.35), overflows=lambda p: np.floor(np.maximum(p - 0.3, 0) * 200))
    run_dir, said = tmp_path / "runs" / "r", []
    end = judged(write(run_dir, rows), job)
    for count in (1, 4, 377, 378, 519, 800, 801):
        write(run_dir / "live", rows[:count])
        (run_dir / "live" / METRICS).replace(run_dir / METRICS)
        if count == 1:
            follower = Follower(Run(run_dir, job), said.append)
            follower()
        follower.tail.inode = (run_dir / METRICS).stat().st_ino  # the file goes on, it is not another one
        follower()
    warned = [line for line in said if line.startswith("warning: ")]
    assert len(warned) == len(end.findings) == 2
    for line, finding in zip(warned, end.findings, strict=True):
        assert line.startswith(f"warning: {finding.name} (step {finding.first_step:,} to {finding.first_step:,}): ")
    follower.tail.inode = 0
    follower()
    assert [line for line in said if line.startswith("warning: ")] == warned
    assert len(follower.watch.lines) == 801


def test_looks_are_the_same_whenever_one_asks():
    assert [looks(0), looks(7), looks(10), looks(25)] == [[], [7], [10], [10, 20, 25]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "ranks", "slow", "finding", "key"),
    [
        ("late batches", 2, ["1"], "slow_rank", "data.workers"),
        ("late batches", 1, ["0"], "data_starvation", "data.workers"),
        ("slow steps", 2, ["1"], "slow_rank", "device.ranks"),
    ],
)
def test_a_disturbed_rank_is_named(tiny, tmp_path, fault, ranks, slow, finding, key):
    job = _resolved(with_(tiny, device={"ranks": ranks}, pretrain={"epochs": 13, "batch_size": 16 // ranks}))
    run_dir = tmp_path / "runs" / "r"
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(dump_config(job))
    command = [str(Path(__file__).parents[1] / "training" / "disturbed_engine.py"), str(run_dir), fault, *slow]
    run_ranks(command, ranks=ranks, log_dir=run_dir / "logs", run_dir=run_dir)
    found = {f.name: f for f in judged(run_dir, job, lost_seconds=1.0).findings}
    assert list(found) == [finding]
    assert found[finding].key == key
    assert (found[finding].figures["data_wait"] > 0.3) == (key == "data.workers")
    assert found[finding].figures.get("rank") == (1 if ranks == 2 else None)
    assert judged(run_dir, job).findings == [], "less than a minute lost"


@pytest.fixture(scope="module")
def family(tiny, tmp_path_factory):
    """Two runs of one recipe in one workspace, with what they logged when they were trained: seeds 3 and 4."""
    workspace, runs = tmp_path_factory.mktemp("family"), []
    for seed in (3, 4):
        job = with_(tiny, pretrain={"epochs": 30, "checkpoint_epochs": 10}).model_copy(update={"seed": seed})
        run = Run.of(_resolved(job), workspace)
        run.write_config()
        shutil.copyfile(RECORDED / f"seed_{seed}.jsonl", run.metrics)
        judge(run)
        remember(run)
        runs.append(run)
    return runs


def test_a_healthy_run_is_found_healthy(family):
    for run in family:
        assert verdict(run, lost_seconds=1e9).findings == []
        assert load_verdict(run).findings == []
    first, second = (load_verdict(run).lines() for run in family)
    assert first[-1].startswith(
        "verdict at epoch 30: nothing found wrong; no reference for the loss: no earlier run of this recipe"
    )
    assert f"the band of 1 finished run of this recipe: {family[0].name}" in second[-1]
    assert ", within " in second[-1]


def test_the_band_is_where_earlier_seeds_were(family):
    first, second = family
    assert recipe_history(first) == recipe_history(second)
    other = Run(second.directory, with_(second.config, pretrain={"blr": 0.01}))
    assert recipe_history(other) != recipe_history(second)
    (past,) = past_runs(second)
    lines = first.readings()
    assert (past.run, past.seed) == (first.name, 3)
    np.testing.assert_allclose(past.loss, [line["loss"] for line in lines], atol=1e-6)
    band = verdict(second).band
    assert band.low < band.loss < band.high
    assert band.last_epoch == 30
    middle = np.mean([line["loss"] for line in lines if line["epoch"] > band.first_epoch])
    assert (band.low + band.high) / 2 == pytest.approx(middle, rel=0.01)
    assert 0.05 <= (band.high - band.low) / 2 / middle < 0.15


@pytest.mark.parametrize(
    ("name", "factors", "findings", "place"),
    [
        ("one run far below", [0.7], ["loss_above_band"], ", above "),
        ("one near", [0.97], [], ", within "),
        ("runs that differ themselves", [0.75, 0.9], [], ", within "),
        ("runs far above", [1.5, 1.5], [], ", below "),
    ],
)
def test_a_run_compared_with_others_of_its_recipe(family, tmp_path, name, factors, findings, place):
    run = Run(write(tmp_path / "runs" / "r", family[1].readings()), family[1].config)
    recipe_history(run).mkdir(parents=True)
    for number, factor in enumerate(factors):
        past = json.loads(remember(family[1]).read_text())
        past["run"], past["loss"] = f"other-{number}", [factor * loss for loss in past["loss"]]
        (recipe_history(run) / f"other-{number}.json").write_text(json.dumps(past))
    result = verdict(run)
    assert [f.name for f in result.findings] == findings, name
    assert place in result.expected
    if findings:
        assert result.findings[0].figures["loss"] > result.findings[0].figures["high"]


@pytest.mark.slow
def test_a_run_that_learns_nothing_says_so_and_is_no_example(tiny, tmp_path):
    said = []
    job = with_(tiny, pretrain={"epochs": 30, "blr": 1e-9, "checkpoint_epochs": 30})
    run = train(job, workspace=tmp_path, report_line=said.append)
    assert [line.split(" (")[0] for line in said if line.startswith("warning")] == ["warning: not_learning"]
    assert said[-2].startswith("verdict at epoch 30: 1 finding;")
    assert "try another pretrain.blr (1e-09)" in said[-1]
    assert not (tmp_path / "history").exists()
    (run.run_dir / FILE).unlink()
    for path in (run.run_dir / FOLDER).iterdir():
        path.unlink()
    again = train(job, workspace=tmp_path, report_line=said.append)  # as if its launcher had been killed at the end
    assert again.reused
    assert json.loads((run.run_dir / FILE).read_text())["findings"][0]["name"] == "not_learning"
    assert len(curves(run.run_dir)["train/loss"]) == len(read_lines(run.run_dir / METRICS))
