"""Evaluation between epochs: it changes nothing, it says what `mae evaluate` says, and a kill does not lose one."""

import shutil

import numpy as np
import pytest

from datasets.base.errors import InputError
from datasets.batches import ordered_batches
from mae.config.load import load_config
from mae.evaluation.evaluate import evaluate
from mae.report.page import report
from mae.runs import checkpoint
from mae.runs.log import METRICS, evaluations, read_lines, readings
from mae.runs.run import Run
from mae.train import train
from tests.mae.made_runs import CLOCK, TIMING, curves, with_

EVALUATED = {"eval_epochs": 2, "eval_protocols": ["knn", "logistic"]}


def measured(run):
    return evaluations(read_lines(run.run_dir / METRICS))


def without_time(lines):
    return [{k: v for k, v in line.items() if k not in (*TIMING, *CLOCK, "evaluation_seconds")} for line in lines]


@pytest.fixture(scope="module")
def watched(tiny, tmp_path_factory):
    """The tiny job, evaluated each second epoch, and what was said."""
    said = []
    job = with_(tiny, pretrain=EVALUATED)
    return job, train(job, workspace=tmp_path_factory.mktemp("watched"), report_line=said.append), said


def test_evaluation_changes_no_bit_of_the_training(trained, watched):
    _, run, _ = watched
    states = [checkpoint.load_state(found.checkpoint.parent) for found in (trained, run)]
    assert states[0] == states[1]  # with the digests of weights, moments and loss scale
    assert without_time(readings(read_lines(run.run_dir / METRICS))) == without_time(
        read_lines(trained.run_dir / METRICS)
    )


@pytest.mark.usefixtures("in_process")
def test_it_measures_what_the_stage_measures(watched, tiny, tmp_path):
    _, run, said = watched
    found = measured(run)
    assert [(line["step"], line["epoch"], line["protocol"]) for line in found] == [
        (step, epoch, protocol) for step, epoch in ((24, 2.0), (48, 4.0)) for protocol in ("knn", "logistic")
    ]
    for step in (24, 48):
        for line in (line for line in found if line["step"] == step):
            folder = run.run_dir / "checkpoints" / str(step)
            where = {"config": tiny, "workspace": tmp_path, "out": tmp_path / str(step)}
            score = evaluate(folder, tiny.data.records, protocol=line["protocol"], **where).results[0]
            assert (line["top1"], line["images"], line["train_images"]) == (score.top1, 40, 200)
    assert f"epoch 4/4: knn {100 * found[2]['top1']:.1f} % of 40 images, in " in " ".join(said)


def test_who_reads_the_metrics_sees_it(watched):
    _, run, _ = watched
    found = {(line["protocol"], line["step"]): line["top1"] for line in measured(run)}
    shown = curves(run.run_dir)
    for protocol in ("knn", "logistic"):
        points = [(step, float(np.float32(found[protocol, step]))) for step in (24, 48)]
        assert [(step, value) for step, value, _ in shown[f"evaluation/{protocol}_top1"]] == points
    page = report(Run.open(run.run_dir)).path.read_text()
    assert f"{100 * found['knn', 48]:.1f} %" in page
    assert "Measured between epochs" in page
    assert "Nothing found wrong" in page


@pytest.mark.slow
def test_a_killed_evaluation_is_made_up_for(watched, tmp_path):
    """The ranks died behind the checkpoint of epoch 2 and before its evaluation."""
    job, run, _ = watched
    copy = tmp_path / "runs" / run.run_dir.name
    shutil.copytree(run.run_dir, copy)
    assert copy == Run.of(job, tmp_path).directory
    for step in ("36", "48"):
        shutil.rmtree(copy / "checkpoints" / step)
    lines = (copy / METRICS).read_text().splitlines(keepends=True)
    (copy / METRICS).write_text("".join(line for line in lines if '"evaluation"' not in line))
    again = train(job, workspace=tmp_path)
    assert again.digest == run.digest
    assert without_time(read_lines(again.run_dir / METRICS)) == without_time(read_lines(run.run_dir / METRICS))


@pytest.mark.parametrize("left", [(), ("knn",)])
def test_a_killed_last_evaluation_is_made_up_for(watched, tmp_path, left):
    """The ranks died behind the last checkpoint: no step is left to do, but what it is worth is not known yet."""
    job, run, _ = watched
    copy = tmp_path / "runs" / run.run_dir.name
    shutil.copytree(run.run_dir, copy)
    lines = (copy / METRICS).read_text().splitlines(keepends=True)
    last = [f'"step": 48, "epoch": 4.0, "protocol": "{name}"' for name in {"knn", "logistic"} - {*left}]
    kept = [line for line in lines if not any(text in line for text in last)]
    assert len(kept) == len(lines) - 2 + len(left)
    (copy / METRICS).write_text("".join(kept))
    again = train(job, workspace=tmp_path)
    assert again.digest == run.digest
    assert without_time(read_lines(again.run_dir / METRICS)) == without_time(read_lines(run.run_dir / METRICS))
    assert train(job, workspace=tmp_path).reused


@pytest.mark.slow
def test_a_sample_suffices(tiny, tmp_path):
    """With two ranks, the first 30 images of each split, every epoch; it is the same run as without."""
    job = with_(tiny, device={"ranks": 2}, pretrain={"batch_size": 8, "epochs": 2, "eval_epochs": 1, "eval_images": 30})
    assert Run.of(job, tmp_path).directory == Run.of(with_(job, pretrain={"eval_epochs": None}), tmp_path).directory
    found = measured(train(job, workspace=tmp_path))
    assert [(line["images"], line["train_images"], line["protocol"]) for line in found] == [(30, 30, "knn")] * 2


def test_the_first_records_of_a_split(records):
    settings = {"image_shape": (28, 28), "crop_pct": 1.0, "batch_size": 16}
    whole = np.concatenate([batch.samples for batch in ordered_batches(records, "val", **settings)])
    for limit, expected in ((30, 30), (400, 40)):
        found = np.concatenate([batch.samples for batch in ordered_batches(records, "val", limit=limit, **settings)])
        np.testing.assert_array_equal(found, whole[:expected])


@pytest.mark.parametrize("value", ["eval_epochs=0", "eval_protocols=[finetune]", "eval_protocols=[]", "eval_images=0"])
def test_what_cannot_be_evaluated_is_refused(tiny_yaml, value):
    with pytest.raises(InputError, match=value.partition("=")[0]):
        load_config(tiny_yaml, [f"pretrain.{value}"])
