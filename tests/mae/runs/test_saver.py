"""Which checkpoints stay, what a full disk leaves, and what may change before a run goes on."""

import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from datasets.base.errors import InputError
from mae.config.sections import ModelConfig
from mae.model.card import ModelCard
from mae.runs import checkpoint, saver
from mae.runs.resume import check_resumed
from mae.runs.run import Run
from mae.runs.saver import Saver
from mae.train import train
from tests.commit_points import kill_at_commit_points
from tests.mae.made_runs import with_

CARD = ModelCard(kind="mae", model=ModelConfig(image_size=32), mask_ratio=0.6)
WEIGHTS = {"a": np.zeros(1000, np.float32)}


def saved(checkpoints, step, *, updates=4, weights=WEIGHTS):
    epoch, update = divmod(step, updates)
    state = {"step": step, "epoch": epoch, "update": update, "loss": 1.0}
    checkpoint.save(checkpoints / str(step), weights, CARD, moments={}, **state)


def stored(checkpoints):
    return sorted(int(path.name) for path in checkpoints.iterdir())


@pytest.mark.parametrize(
    ("name", "keep", "keep_epochs", "expected"),
    [
        ("the newest", 3, None, [16, 18, 20]),
        ("only one", 1, None, [20]),
        ("and those of every second epoch", 2, 2, [8, 16, 18, 20]),
        ("all ends of epochs", 1, 1, [4, 8, 12, 16, 20]),
    ],
)
def test_which_stay(tmp_path, name, keep, keep_epochs, expected):
    with Saver(tmp_path, keep=keep, keep_epochs=keep_epochs) as saver:
        for step in range(2, 21, 2):
            saver.save(step, lambda directory, step=step: saved(tmp_path, step))
    assert stored(tmp_path) == expected, name


def test_one_that_cannot_be_removed_ends_no_training(tmp_path, monkeypatch, caplog):
    """As on NFS while a reader has a file of it open."""

    def refuse(directory):
        raise OSError(39, "Directory not empty", str(directory))

    monkeypatch.setattr(saver, "discard", refuse)
    with Saver(tmp_path, keep=1, keep_epochs=None) as writer:
        for step in (2, 4):
            writer.save(step, lambda directory, step=step: saved(tmp_path, step))
    assert stored(tmp_path) == [2, 4]
    assert f"{tmp_path / '2'}: an old checkpoint could not be removed" in caplog.text


def test_a_later_damaged_one_does_not_push_out_good_ones(tmp_path):
    for step in (2, 4, 6, 8):
        saved(tmp_path, step)
    for step in (6, 8):
        (tmp_path / str(step) / "model.safetensors").write_bytes(b"")
    assert checkpoint.newest(tmp_path) == tmp_path / "4"
    with Saver(tmp_path, keep=2, keep_epochs=None) as saver:
        saver.save(5, lambda directory: saved(tmp_path, 5))
    assert stored(tmp_path) == [4, 5, 6, 8]


def test_a_half_removed_one_is_cleared_away(tmp_path):
    """As a SIGKILL leaves it: aside, by a process that is gone."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / f"4.partial-{os.uname().nodename}-{gone.pid}-0123abcd").mkdir()
    with Saver(tmp_path, keep=1, keep_epochs=None):
        pass
    assert list(tmp_path.iterdir()) == []


def start_from(folder):
    """A run whose checkpoint of step 2 is finished."""
    shutil.rmtree(folder, ignore_errors=True)
    saved(folder, 2)


def save_next(folder):
    """Write the checkpoint of step 4 and remove the one before."""
    with Saver(folder, keep=1, keep_epochs=None) as saver:
        saver.save(4, lambda directory: saved(folder, 4))


def test_a_kill_at_any_commit_point_leaves_an_intact_checkpoint(tmp_path):
    """And the next attempt leaves what an undisturbed one leaves."""
    start_from(tmp_path / "whole")
    save_next(tmp_path / "whole")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "4").iterdir()}
    folder, found = tmp_path / "killed", set()

    def check(point):
        newest = checkpoint.newest(folder)
        assert newest in (folder / "2", folder / "4"), point
        found.add(newest.name)
        save_next(folder)
        assert [path.name for path in folder.iterdir()] == ["4"], point
        assert {path.name: path.read_bytes() for path in (folder / "4").iterdir()} == whole, point

    points = kill_at_commit_points(partial(save_next, folder), check, reset=lambda: start_from(folder))
    assert points >= 10
    assert found == {"2", "4"}


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from tests.mae.runs.test_saver import saved
from mae.runs.saver import Saver
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with Saver(folder, keep=1, keep_epochs=None) as saver:
    saver.save(2, lambda directory: saved(folder, 2))
    saver.save(4, lambda directory: saved(folder, 4, weights={"a": np.zeros(1_000_000, np.float32)}))
"""


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    found = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 1
    assert f"{tmp_path / '4'}: expected room for a checkpoint, found" in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    assert checkpoint.newest(tmp_path) == tmp_path / "2"


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("workers", {"data": {"workers": 3}}),
        ("ranks with the same global batch", {"device": {"ranks": 2}, "pretrain": {"batch_size": 8}}),
        ("accumulation of it", {"pretrain": {"batch_size": 4, "accum_iter": 4}}),
        ("what is kept", {"pretrain": {"keep_checkpoints": 9, "keep_epochs": 1, "checkpoint_epochs": 3}}),
        ("what a failure does", {"pretrain": {"on_non_finite": "decoder_float32"}}),
    ],
)
def test_what_does_not_matter_is_the_same_run(tiny, tmp_path, name, sections):
    same = with_(tiny, **sections)
    assert Run.of(same, tmp_path).directory == Run.of(tiny, tmp_path).directory, name


MIXED = {"finetune": {"mixup": 0.8, "cutmix": 0.0}}
PLAIN = {"finetune": {"mixup": 0.0, "cutmix": 0.0}}


@pytest.mark.parametrize(
    ("name", "task", "sections", "same"),
    [
        ("plain fine-tuning", "finetune", PLAIN, True),
        ("images mixed with others of the batch", "finetune", MIXED, False),
        ("batch normalisation", "linear", {}, False),
    ],
)
def test_a_rank_s_batch_matters_where_its_images_meet(tiny, trained, tmp_path, name, task, sections, same):
    job = with_(tiny.model_copy(update={"task": task, "init": str(trained.checkpoint)}), **sections)
    settings = {"batch_size": 8, "accum_iter": 2}, {"batch_size": 16, "accum_iter": 1}
    a, b = (Run.of(with_(job, **{task: values}), tmp_path).directory for values in settings)
    assert (a == b) == same, name
    ranks = with_(job, device={"ranks": 2}, **{task: {"batch_size": 8, "accum_iter": 1}})
    assert Run.of(ranks, tmp_path).directory == a, name


def test_what_changed_is_named(tiny, trained):
    workspace = trained.run_dir.parents[1]
    other = with_(tiny, pretrain={"blr": 0.5, "batch_size": 20}, model={"depth": 2})
    with pytest.raises(InputError) as error:
        train(other, workspace=workspace, resume=True)
    message = str(error.value)
    for difference in (
        "pretrain.blr 0.5 where the checkpoint has 0.08",
        "global batch 20 where",
        "model.depth 2 where",
    ):
        assert difference in message
    assert "seed" not in message
    assert str(trained.checkpoint.parent) in message
    assert train(tiny, workspace=workspace, resume=True).reused


def test_a_run_that_has_begun_is_not_compared_with_others(tiny, trained, tmp_path):
    """Seed 3 is finished; seed 4 has no checkpoint yet."""
    shutil.copytree(trained.run_dir, tmp_path / "runs" / trained.run_dir.name)
    other = tiny.model_copy(update={"seed": 4})
    with pytest.raises(InputError, match="seed 4 where the checkpoint has 3"):
        check_resumed(Run.of(other, tmp_path), None, among_others=True)
    Run.of(other, tmp_path).directory.mkdir()
    (Run.of(other, tmp_path).directory / "config.yaml").touch()
    check_resumed(Run.of(other, tmp_path), None, among_others=True)


def test_another_release_of_mindspore_is_named(tiny, trained, caplog):
    run, written = Run.open(trained.run_dir), checkpoint.load_state(trained.checkpoint.parent).mindspore
    for release in (None, written):
        check_resumed(run, release, among_others=True)
    assert caplog.text == ""
    check_resumed(run, "1.0", among_others=True)
    assert f"MindSpore {written} wrote this checkpoint, and 1.0 continues" in caplog.text


def test_a_checkpoint_of_other_records_is_refused(tiny, trained, tmp_path):
    """Also where it lies in this run's own directory."""
    run_dir = Run.of(tiny, tmp_path).directory
    shutil.copytree(trained.run_dir, run_dir)
    state = checkpoint.load_state(run_dir / "checkpoints" / "48").model_dump(exclude={"digests"})
    state["inputs"]["records"] = "0" * 12
    checkpoint.write_state(run_dir / "checkpoints" / "48", **state)
    with pytest.raises(InputError, match=r"records [0-9a-f]{12} where the checkpoint has 000000000000"):
        train(tiny, workspace=tmp_path)
