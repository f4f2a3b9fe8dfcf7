"""The command line as a user runs it: a process, its output, its exit code."""

import json
import os
import subprocess
import sys

import pytest


def mae(*arguments, cwd, env=None):
    """Run `python -m mae`, as this checkout has it."""
    command = [sys.executable, "-m", "mae", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "GLOG_v": "3", **(env or {})}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def result(process):
    """The JSON that a stage prints."""
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_every_stage_without_prefect(tmp_path, tiny_yaml):
    sample = result(mae("sample-data", "images", "--train-per-class", 12, "--val-per-class", 3, cwd=tmp_path))
    assert (sample["train"], sample["val"]) == (120, 30)
    valid = result(mae("data", "validate", "images", "--out", "valid", cwd=tmp_path))
    assert (valid["train"], valid["val"], valid["faults"]) == (120, 30, {})
    records = result(mae("data", "shard", "valid", "--out", "records", cwd=tmp_path))
    assert records["train"] == 120
    checked = result(mae("data", "check", "records", "--root", "images", cwd=tmp_path))
    assert checked["digest"] == records["digest"]
    job = [tiny_yaml, "--set", "data.records=records", "--set", "pretrain.epochs=2", "--workspace", "w"]
    run = result(mae("train", *job, cwd=tmp_path))["run_dir"]
    again = mae("train", *job, cwd=tmp_path)
    assert result(again)["reused"]
    assert "reusing the finished run" in again.stderr
    logistic = result(
        mae("evaluate", run, "--data", "records", "--protocol", "logistic", "--workspace", "w", cwd=tmp_path)
    )
    assert [r["encoder"] for r in logistic["results"]] == ["pretrained", "random", "pixels"]
    folder = mae("evaluate", run, "--data", "images", "--protocol", "knn", "--workspace", "w", cwd=tmp_path)
    assert len(result(folder)["results"]) == 3
    predictions = result(mae("predict", run, "images/val/bag", "--out", run, cwd=tmp_path))
    assert predictions["images"] == 3
    page = result(mae("report", run, cwd=tmp_path))["path"]
    assert "<html" in (tmp_path / page).read_text()


def test_rank_tables(tmp_path):
    for server in (1, 2):
        conf = tmp_path / f"hccn{server}.conf"
        conf.write_text("".join(f"address_{i}=192.0.2.{server * 10 + i}\n" for i in range(8)))
        ip = f"198.51.100.{server}"
        process = mae(
            "rank-table", "generate", "--device-num", "[0,8)", "--server-ip", ip, "--hccn-conf", conf, cwd=tmp_path
        )
        assert result(process)["ranks"] == 8
    tables = sorted(p.name for p in tmp_path.glob("hccl_8p_*.json"))
    assert tables == ["hccl_8p_01234567_198.51.100.1.json", "hccl_8p_01234567_198.51.100.2.json"]
    merged = result(mae("rank-table", "merge", *tables, "--out", "all.json", cwd=tmp_path))
    assert (merged["servers"], merged["ranks"]) == (2, 16)
    assert result(mae("rank-table", "check", "all.json", "--strict", cwd=tmp_path))["ranks"] == 16
    broken = tmp_path / "all.json"
    broken.write_text(broken.read_text().replace('"completed"', '"initializing"'))
    process = mae("rank-table", "check", "all.json", cwd=tmp_path)
    assert process.returncode == 1
    assert "initializing" in process.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "code", "message"),
    [
        ("no arguments", [], 2, "Usage"),
        ("unknown command", ["fly"], 2, "No such command"),
        ("missing folder", ["data", "validate", "nowhere", "--out", "x"], 1, "nowhere"),
        ("missing config", ["train", "nowhere.yaml"], 1, "nowhere.yaml: expected a YAML job config"),
        ("unknown protocol", ["evaluate", "x", "--data", "y"], 2, "--protocol"),
        ("no config", ["evaluate", "vit.pth", "--data", "y", "--protocol", "knn"], 1, "--config"),
        ("missing run", ["report", "nowhere"], 1, "nowhere"),
    ],
)
def test_errors_are_one_line_and_have_an_exit_code(tmp_path, name, arguments, code, message):
    (tmp_path / "vit.pth").touch()
    process = mae(*arguments, cwd=tmp_path)
    assert process.returncode == code, name
    assert message in process.stdout + process.stderr
    assert "Traceback" not in process.stderr


def test_help_lists_what_exists_and_nothing_else(tmp_path):
    text = mae("--help", cwd=tmp_path).stdout
    for command in (
        "sample-data",
        "data",
        "rank-table",
        "train",
        "evaluate",
        "predict",
        "export",
        "convert",
        "plan",
        "report",
    ):
        assert command in text
    for later in ("doctor",):
        assert later not in text


def test_training_modules_need_no_prefect(tmp_path):
    """An older training interpreter has none."""
    (tmp_path / "prefect.py").write_text("raise ImportError('no Prefect here')")
    modules = "mae.cli mae.training.engine mae.evaluation.evaluate mae.prediction.predict mae.report.page"
    code = f"import {modules.replace(' ', ', ')}, datasets.sharding, datasets.sample"
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


def test_an_unknown_target_is_wrong_usage(tmp_path):
    process = mae("predict", "model.safetensors", "x.png", "--out", "out", "--target", "TPU", cwd=tmp_path)
    assert process.returncode == 2
    assert "'CPU'" in process.stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path, trained):
    (tmp_path / "file").touch()
    process = mae("convert", trained.checkpoint, "file/model.safetensors", cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("mae: file: expected a place to write")
    assert "Traceback" not in process.stderr
