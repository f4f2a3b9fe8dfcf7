"""The command line: its output, exit codes and help. Commands run in this process unless the process is tested."""

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml

from datasets.base.errors import InputError
from mae.cli import app
from tests.mae.command_line import mae

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the processes that commands start


def test_every_stage_without_prefect(tmp_path, tiny_yaml, caplog):
    """With absolute paths: the processes that validation shares between calls may have another working directory."""
    caplog.set_level("INFO")
    images, valid, records, workspace = (tmp_path / name for name in ("images", "valid", "records", "w"))
    sample = mae("sample-data", images, "--train-per-class", 12, "--val-per-class", 3).result
    assert (sample["train"], sample["val"]) == (120, 30)
    found = mae("data", "validate", images, "--out", valid).result
    assert (found["train"], found["val"], found["faults"]) == (120, 30, {})
    written = mae("data", "shard", valid, "--out", records).result
    assert written["train"] == 120
    assert mae("data", "check", records, "--root", images).result["digest"] == written["digest"]
    job = [tiny_yaml, "--set", f"data.records={records}", "--set", "pretrain.epochs=2", "--workspace", workspace]
    run = mae("train", *job).result["run_dir"]
    assert mae("train", *job).result["reused"]
    assert "reusing the finished run" in caplog.text
    found = mae("evaluate", run, "--data", images, "--protocol", "knn", "--workspace", workspace).result
    assert [score["encoder"] for score in found["results"]] == ["pretrained", "random", "pixels"]
    assert "knn: pretrained" in caplog.text
    assert mae("export", run, tmp_path / "encoder.mindir").result["output"] == "tokens"
    predictions = mae("predict", run, images / "val" / "bag", "--out", run).result
    assert predictions["images"] == 3
    page = mae("report", run).result["path"]
    assert "<html" in (tmp_path / page).read_text()


@pytest.mark.parametrize(
    ("arguments", "python"),
    [
        ([], None),
        (["--python", "own"], "own"),
        (["--set", "device.python=own"], "own"),
        (["--config", "config.yaml"], "theirs"),
        (["--config", "config.yaml", "--python", "own"], "own"),
    ],
)
def test_the_interpreter_of_a_run_is_named_and_not_started(
    trained, records, tmp_path, monkeypatch, caplog, arguments, python
):
    """A run's folder may be somebody else's. A config that the user gives is the user's."""
    run, started = tmp_path / "runs" / "their-run", []

    def in_child(_, device, **__):
        started.append(device.python)
        raise InputError("end", expected="a", found="b", todo="c")

    shutil.copytree(trained.run_dir, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "device": {"python": "theirs"}}))
    shutil.copy(run / "config.yaml", tmp_path)
    monkeypatch.setattr(import_module("mae.evaluation.evaluate"), "in_child", in_child)
    caplog.set_level("INFO")
    assert mae("evaluate", run, "--data", records, "--protocol", "knn", "--out", "out", *arguments).code == 1
    assert started == [python]
    assert ("not using device.python theirs of this run" in caplog.text) == ("--config" not in arguments)


def test_rank_tables(tmp_path):
    for server in (1, 2):
        conf = tmp_path / f"hccn{server}.conf"
        conf.write_text("".join(f"address_{i}=192.0.2.{server * 10 + i}\n" for i in range(8)))
        ip = f"198.51.100.{server}"
        options = ["--device-num", "[0,8)", "--server-ip", ip, "--hccn-conf", conf]
        assert mae("rank-table", "generate", *options).result["ranks"] == 8
    tables = sorted(p.name for p in tmp_path.glob("hccl_8p_*.json"))
    assert tables == ["hccl_8p_01234567_198.51.100.1.json", "hccl_8p_01234567_198.51.100.2.json"]
    merged = mae("rank-table", "merge", *tables, "--out", "all.json").result
    assert (merged["servers"], merged["ranks"]) == (2, 16)
    assert mae("rank-table", "check", "all.json", "--strict").result["ranks"] == 16
    broken = tmp_path / "all.json"
    broken.write_text(broken.read_text().replace('"completed"', '"initializing"'))
    process = mae("rank-table", "check", "all.json")
    assert process.code == 1
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
    process = mae(*arguments)
    assert process.code == code, name
    assert message in process.stdout + process.stderr
    assert "Traceback" not in process.stderr


def test_a_process_prints_errors_and_returns_the_exit_code(tmp_path):
    process = subprocess.run([sys.executable, "-m", "mae", "report", "nowhere"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (1, "")
    (line,) = process.stderr.splitlines()
    assert line.startswith("mae: ")
    assert "nowhere" in line


COMMANDS = ("sample-data", "data", "rank-table", "train", "evaluate", "predict", "export", "convert", "plan", "report")


def leaves(command, name=""):
    """Yield the path and the object of each command that is not a group."""
    for part, child in getattr(command, "commands", {}).items():
        yield from leaves(child, f"{name} {part}")
    if not hasattr(command, "commands"):
        yield name.strip(), command


def test_help_lists_all_commands_and_nothing_else():
    text = mae("--help").stdout.split("Commands:\n")[1]
    assert {line.split()[0] for line in text.splitlines()} == set(COMMANDS)


@pytest.mark.parametrize(("name", "command"), list(leaves(typer.main.get_command(app))))
def test_help_describes_each_argument_and_option(name, command):
    finished = mae(*name.split(), "--help")
    assert finished.code == 0
    assert [parameter.name for parameter in command.params if not parameter.help] == []
    if name in ("train", "evaluate", "convert", "predict", "plan"):
        assert f"    mae {name} " in finished.stdout


def test_training_modules_need_no_prefect(tmp_path):
    """They run in older interpreters, which cannot have Prefect."""
    (tmp_path / "prefect.py").write_text("raise ImportError('no Prefect here')")
    modules = "mae.cli mae.training.engine mae.evaluation.evaluate mae.prediction.predict mae.report.page"
    code = f"import {modules.replace(' ', ', ')}, datasets.sharding, datasets.sample"
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


def test_an_unknown_target_is_wrong_usage(tmp_path):
    process = mae("predict", "model.safetensors", "x.png", "--out", "out", "--target", "TPU")
    assert process.code == 2
    assert "'CPU'" in process.stderr


def test_a_place_that_cannot_be_written_is_named(tmp_path, trained):
    (tmp_path / "file").touch()
    process = mae("convert", trained.checkpoint, "file/model.safetensors")
    assert process.code == 1
    assert process.stderr.splitlines()[-1].startswith("mae: file: expected a place to write")
    assert "Traceback" not in process.stderr
