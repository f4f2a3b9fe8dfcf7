"""Another MindSpore gives the same results: this process starts everything, `device.python` names its interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets.batches import train_batches
from mae.config.protocols import protocol_names
from mae.config.sections import Config
from mae.evaluation import evaluate
from mae.prediction import predict
from mae.train import train
from tests.mae.made_runs import metrics, with_

ROOT = Path(__file__).parents[2]
UNIT_TESTS = (
    "tests/mae/model/test_layers.py",
    "tests/mae/model/test_model.py",
    "tests/mae/training/test_ascend_operators.py",
    "tests/mae/training/test_update.py",
    "tests/mae/training/test_optim.py",
    "tests/mae/runs/test_checkpoint.py",
    "tests/datasets/batches",
)
IMPORT_ALL = """
import importlib, pathlib, sys
for package in ("mae", "datasets"):
    for path in sorted(pathlib.Path(package).rglob("*.py")):
        if path.name != "__main__.py":
            importlib.import_module(".".join(path.with_suffix("").parts).replace(".__init__", ""))
assert "prefect" not in sys.modules
"""
FLOAT32, FLOAT16 = 1e-6, 1e-5  # largest relative differences between the losses of two releases
UPDATES = 50
ONE_IMAGE = 1 / 40 + 1e-9  # of the validation images
HALF = {
    "compute": {"dtype": "float16"},
    "pretrain": {"accum_iter": 2, "clip_grad": 0.5, "ema": 0.9},
}


def run_other(other: str, *arguments: str, folder: Path = ROOT) -> str:
    """Run the other interpreter with this project's code; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"}
    command = [other, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def job(tiny: Config, task: str, ranks: int, init: Path | None = None, **sections) -> Config:
    """Return a job of 50 updates of 40 images, over all ranks, with a checkpoint in the middle."""
    changed = with_(tiny, device={"ranks": ranks}, **sections)
    accum_iter = changed.section(task).accum_iter
    shared = {"epochs": 10, "checkpoint_epochs": 5, "batch_size": 40 // ranks // accum_iter, "warmup_epochs": 1}
    changed = with_(changed, **{task: {**shared, "blr": {"pretrain": 4e-3, "finetune": 4e-3, "linear": 1.0}[task]}})
    return changed.model_copy(update={"task": task, "init": None if init is None else str(init)})


def trace(run_dir: Path) -> list[float]:
    """Return the losses of a run, each with its step."""
    return [value for line in metrics(run_dir) for value in (line["step"], line["loss"])]


class Pair:
    """The same jobs in this interpreter and in the other one; each is trained once."""

    def __init__(self, folder: Path, other: str) -> None:
        self.folder, self.other, self.done = folder, other, {}

    def train(self, config: Config, who: str):
        key = config.model_dump_json(), who
        if key not in self.done:
            python = self.other if who == "other" else None
            self.done[key] = train(with_(config, device={"python": python}), workspace=self.folder / who)
        return self.done[key]


@pytest.fixture(scope="session")
def pair(other, tmp_path_factory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"), other)


@pytest.fixture(scope="session")
def pretrained(pair, tiny):
    """Return the run of each interpreter: {"this": ..., "other": ...}."""
    return {who: pair.train(job(tiny, "pretrain", 1), who) for who in ("this", "other")}


@pytest.fixture(scope="session")
def classifier(pair, pretrained, tiny):
    """Return the run of a classifier that the other interpreter has fine-tuned."""
    return pair.train(job(tiny, "finetune", 1, pretrained["other"].checkpoint), "other")


def test_it_is_another_release(other):
    found = run_other(other, "-c", "from importlib.metadata import version; print(version('mindspore'))")
    assert found.strip() not in ("", version("mindspore"))


def test_every_module_is_imported(other):
    run_other(other, "-c", IMPORT_ALL)


def test_unit_tests(other):
    assert " passed" in run_other(other, "-m", "pytest", "-q", "-p", "no:cacheprovider", *UNIT_TESTS)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("task", ["pretrain", "finetune", "linear", "float16"])
def test_losses(pair, pretrained, tiny, task, ranks):
    changes = HALF if task == "float16" else {}
    name = "pretrain" if task == "float16" else task
    init = None if name == "pretrain" else pretrained["other" if ranks == 1 else "this"].checkpoint
    config = job(tiny, name, ranks, init, **changes)
    runs = {who: pair.train(config, who).run_dir for who in ("this", "other")}
    expected, found = trace(runs["this"]), trace(runs["other"])
    assert max(expected[::2]) == UPDATES
    np.testing.assert_allclose(found, expected, rtol=FLOAT16 if task == "float16" else FLOAT32)


@pytest.mark.parametrize(("begins", "ends"), [("this", "other"), ("other", "this")])
def test_one_release_continues_the_run_of_another(pair, pretrained, tiny, tmp_path, caplog, begins, ends):
    config = job(tiny, "pretrain", 1)
    run = tmp_path / "runs" / pretrained[begins].run_dir.name
    shutil.copytree(pretrained[begins].run_dir, run)
    shutil.rmtree(run / "checkpoints" / str(UPDATES))
    python = pair.other if ends == "other" else None
    train(with_(config, device={"python": python}), workspace=tmp_path, resume=True)
    np.testing.assert_allclose(trace(run), trace(pretrained[begins].run_dir), rtol=FLOAT32)
    assert "wrote this checkpoint" in (run / "logs" / "rank_0.log").read_text()
    assert "wrote this checkpoint" in caplog.text


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("protocol", protocol_names())
def test_evaluation(pair, pretrained, classifier, tiny, records, tmp_path, protocol, ranks):
    run = classifier if protocol == "classify" else pretrained["this"]

    def measured(who: str) -> dict[str, float]:
        device = {"python": pair.other if who == "other" else None, "ranks": ranks}
        place = tmp_path / who
        config = with_(tiny, device=device)
        found = evaluate(run.checkpoint, records, protocol=protocol, config=config, workspace=place, out=place)
        assert {score.images for score in found.results} == {40}
        return {score.encoder: score.top1 for score in found.results}

    assert measured("other") == pytest.approx(measured("this"), abs=ONE_IMAGE)


@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_prediction(pair, pretrained, classifier, tiny, images, tmp_path, kind):
    run = classifier if kind == "classifier" else pretrained["this"]
    pictures, tables = sorted(images.glob("val/*/*"))[:3], []
    for name, python in (("other", pair.other), ("this", None)):
        device = with_(tiny, device={"python": python}).device
        tables.append(pq.read_table(predict(run.checkpoint, pictures, tmp_path / name, device=device).table))
    values = "loss" if kind == "mae" else "probabilities"
    flat = [np.ravel(table[values].to_pylist()) for table in tables]
    assert len(flat[0]) >= len(pictures)
    np.testing.assert_allclose(*flat, rtol=1e-5)


def test_records_of_the_other_release_are_read(other, images, records, tmp_path):
    for command in (["validate", str(images), "--out", "valid"], ["shard", "valid", "--out", "records"]):
        run_other(other, "-m", "mae", "data", *command, folder=tmp_path)
    written = tmp_path / "records"
    found, expected = (
        list(train_batches(str(path), image_shape=(28, 28), batch_size=16, crop_scale=0.2, seed=1, epochs=[0]))
        for path in (written, records)
    )
    assert len(found) == len(expected) == 12
    for one, same in zip(found, expected, strict=True):
        for ours, theirs in zip(one, same, strict=True):
            np.testing.assert_array_equal(ours, theirs)
