"""Training for real: what a run leaves, what is reused, what is refused."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import write_json
from datasets.base.processes import started
from mae.evaluation.evaluate import evaluate
from mae.runs.model_file import load_weights, model_file
from mae.runs.run import Run
from mae.train import train
from tests.mae.made_runs import metrics, with_


def test_a_run_learns_and_leaves_what_the_contract_names(trained):
    lines = metrics(trained.run_dir)
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert trained.steps == 4 * (200 // 16)
    assert (lines[-1]["step"], lines[-1]["epoch"]) == (trained.steps, 4.0)
    assert trained.loss == lines[-1]["loss"]
    assert trained.digest == file_digest(trained.checkpoint)
    assert (trained.run_dir / "config.yaml").is_file()
    assert (trained.run_dir / "logs" / "rank_0.log").is_file()
    assert sorted(int(p.name) for p in (trained.run_dir / "checkpoints").iterdir()) == [
        24,
        36,
        48,
    ]  # keep_checkpoints is 3


def test_a_finished_run_is_reused(trained, tiny):
    before = metrics(trained.run_dir)
    again = train(tiny, workspace=trained.run_dir.parents[1])
    assert again == trained.model_copy(update={"reused": True})
    assert metrics(trained.run_dir) == before


@pytest.mark.slow
def test_half_precision_trains_with_a_scaled_loss(tiny, trained, tmp_path):
    half = train(with_(tiny, compute={"dtype": "float16"}), workspace=tmp_path)
    lines = metrics(half.run_dir)
    assert {line["loss_scale"] for line in lines} == {65536.0}
    assert {line["overflows"] for line in lines} == {0}
    np.testing.assert_allclose(half.loss, trained.loss, rtol=0.01)
    norms = [[line["grad_norm"] for line in metrics(run.run_dir)] for run in (half, trained)]
    np.testing.assert_allclose(*norms, rtol=0.05)


def test_what_matters_names_another_run(tiny, tmp_path):
    here = Run.of(tiny, tmp_path).directory
    for other in (
        with_(tiny, pretrain={"epochs": 5}),
        with_(tiny, device={"ranks": 2}),
        tiny.model_copy(update={"seed": 4}),
    ):
        assert Run.of(other, tmp_path).directory != here
    assert Run.of(with_(tiny, device={"python": "python3"}), tmp_path).directory == here


def test_a_damaged_checkpoint_is_passed_over(tiny, trained, tmp_path, caplog):
    copy = tmp_path / "runs" / trained.run_dir.name
    shutil.copytree(trained.run_dir, copy)
    model = copy / "checkpoints" / "48" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    again = train(tiny, workspace=tmp_path)
    assert "skipping a damaged checkpoint: model.safetensors has other content" in caplog.text
    assert again.digest == trained.digest
    assert "resuming after epoch 3" in (copy / "logs" / "rank_0.log").read_text()


@pytest.mark.slow
def test_graphs_are_not_taken_from_a_cache(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", "1")
    monkeypatch.setenv("MS_COMPILER_CACHE_PATH", str(tmp_path / "cache"))
    assert train(tiny, workspace=tmp_path).digest == trained.digest
    assert not (tmp_path / "cache").exists()


def unlabelled(records, folder):
    """The records, as of a flat folder of images."""
    copy = folder / "unlabelled"
    shutil.copytree(records, copy)
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**index, "classes": ["unlabelled"]}))
    return str(copy)


def test_a_run_that_another_process_trains_is_left_alone(tiny, trained, tmp_path):
    run_dir = Run.of(tiny, tmp_path).directory
    shutil.copytree(trained.run_dir, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "48")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    owner = subprocess.Popen(["sleep", "600"])
    try:
        write_json(run_dir / "launch" / "launcher.json", {"pid": owner.pid, "started": started(owner.pid)})
        for resume in (False, True, None):
            with pytest.raises(InputError, match=f"found one by process {owner.pid}"):
                train(tiny, workspace=tmp_path, resume=resume)
    finally:
        owner.kill()
        owner.wait()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("name", "sections", "message"),
    [
        ("wrong class count", {"model": {"num_classes": 7}}, "model.num_classes: expected 10"),
        ("batch larger than the data", {"pretrain": {"batch_size": 300}}, "at most 200 training images"),
        ("records gone", {"data": {"records": "/nowhere"}}, "no such file"),
        ("no records", {"data": {"records": None}}, "run `mae data shard`"),
        ("no NPU", {"device": {"target": "Ascend"}}, "configs/demo.yaml"),
        ("diverging", {"pretrain": {"blr": 1e30}}, "expected a finite loss"),
        ("nothing to measure", {"pretrain": {"eval_epochs": 1}}, "at least 2 classes"),
        ("no checkpoint to probe", {}, "init: expected a checkpoint that task linear starts from"),
    ],
)
def test_what_cannot_work_says_so(tiny, tmp_path, name, sections, message):
    if name == "nothing to measure":
        sections = {**sections, "data": {"records": unlabelled(tiny.data.records, tmp_path)}}
    job = with_(tiny, **sections)
    if "linear" in message:
        job = job.model_copy(update={"task": "linear"})
    with pytest.raises(InputError) as error:
        train(job, workspace=tmp_path)
    assert message in str(error.value), name
    if name != "diverging":
        assert not list(tmp_path.glob("runs/*/logs")), "refused before any rank started"


@pytest.mark.usefixtures("in_process")
def test_the_published_probe_trains_the_head_only(tiny, trained, tmp_path):
    found = evaluate(
        trained.checkpoint, tiny.data.records, protocol="linear", config=tiny, workspace=tmp_path, out=tmp_path / "e"
    )
    (score,) = found.results
    assert (score.encoder, score.images) == ("pretrained", 40)
    (directory,) = (tmp_path / "runs").glob("tiny-linear-*")
    run, lines = Run.open(directory), metrics(directory)
    assert lines[-1]["loss"] < min(np.log(10), lines[0]["loss"])  # chance
    weights, encoder = (load_weights(model_file(path)) for path in (run.directory, trained.checkpoint))
    for name in ("cls_token", "blocks.0.attn.qkv.weight", "norm.weight"):
        np.testing.assert_array_equal(weights[name], encoder[name])
    assert weights["head.0.num_batches_tracked"] == run.finished().steps
    assert np.abs(weights["head.0.running_mean"]).max() > 0
    state = load_weights(run.newest() / "optimizer.safetensors")
    assert sorted(state) == ["lars_v.head.1.bias", "lars_v.head.1.weight"]
    with pytest.raises(InputError, match="expected a mae or encoder checkpoint, found a classifier"):
        evaluate(directory, tiny.data.records, protocol="logistic", config=tiny, workspace=tmp_path)
