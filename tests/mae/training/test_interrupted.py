"""Interrupted in the middle of an epoch: a linear probe, float16, and going on with another number of ranks."""

import shutil

import numpy as np
import pytest

from datasets.base.errors import InputError
from mae.runs import checkpoint
from mae.runs.failure import failures
from mae.runs.model_file import load_weights
from mae.runs.run import Run
from mae.train import _resolved, train
from mae.training.failed_step import replay
from tests.mae.made_runs import killed, lines, metrics, planted, steps, with_

pytestmark = pytest.mark.slow

RECIPE = {"epochs": 6, "warmup_epochs": 1, "checkpoint_epochs": 50, "checkpoint_steps": 5, "keep_checkpoints": 100}


@pytest.mark.parametrize("name", ["linear probe", "float16"])
def test_a_killed_one_ends_as_if_nothing_had_happened(tiny, trained, tmp_path, name):
    if name == "float16":
        job = with_(tiny, pretrain=RECIPE, compute={"dtype": "float16"})
    else:
        job = with_(tiny, linear=RECIPE).model_copy(update={"task": "linear", "init": str(trained.checkpoint)})
    job = _resolved(job)
    whole = train(job, workspace=tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    killed(job, tmp_path / "killed", "rank")
    left = max(steps(Run.of(job, tmp_path / "killed").directory))
    assert 0 < left < whole.steps
    run = train(job, workspace=tmp_path / "killed", resume=True)
    assert f"checkpoints/{left}" in (run.run_dir / "logs" / "rank_0.log").read_text()
    assert lines(run.run_dir) == lines(whole.run_dir)
    states = [checkpoint.load_state(r.checkpoint.parent) for r in (run, whole)]
    assert states[0] == states[1]  # with the digests of the weights, which hold running statistics
    if name == "float16":
        assert states[0].loss_scale["loss_scale_good_updates"] == run.steps
    else:
        weights = load_weights(run.checkpoint)
        assert weights["head.0.num_batches_tracked"] == run.steps
        assert weights["head.0.running_var"].std() > 0


@pytest.fixture(scope="module")
def by_ranks(tiny, tmp_path_factory):
    """The same global batches by one rank and by two: job and run."""
    recipe = {**RECIPE, "epochs": 3}
    one = with_(tiny, pretrain=recipe)
    jobs = {1: one, 2: with_(one, device={"ranks": 2}, pretrain={"batch_size": 8})}
    return {n: (job, train(job, workspace=tmp_path_factory.mktemp(f"by{n}"))) for n, job in jobs.items()}


@pytest.mark.parametrize(("before", "behind"), [(2, 1), (1, 2)])
def test_other_ranks_go_on_in_the_middle_of_an_epoch(by_ranks, tmp_path, before, behind):
    """Step 20 is the eighth update of the second epoch."""
    whole, job = by_ranks[before][1], by_ranks[behind][0]
    run_dir = Run.of(job, tmp_path).directory
    shutil.copytree(whole.run_dir, run_dir)
    for step in steps(run_dir):
        if step > 20:
            shutil.rmtree(run_dir / "checkpoints" / str(step))
    run = train(job, workspace=tmp_path, resume=True)
    assert "resuming after epoch 1 and 8 updates" in (run_dir / "logs" / "rank_0.log").read_text()
    assert checkpoint.load_state(run.checkpoint.parent).ranks == behind
    found, expected = ([(line["step"], line["lr"], line["loss"]) for line in metrics(r.run_dir)] for r in (run, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_failed_step_of_two_ranks_runs_again(tiny, trained, tmp_path):
    job = with_(tiny, device={"ranks": 2}, pretrain={"epochs": 5, "batch_size": 8})
    made = planted(job, trained, tmp_path, "decoder_blocks.0.mlp.fc1.weight", np.nan)
    run_dir = made.directory
    with pytest.raises(InputError, match="step 49: expected a finite loss and gradient"):
        train(job, workspace=tmp_path)
    assert list(failures(made)) == ["step_49"]
    assert not (run_dir / "launch").exists(), "ranks are left"
    inputs = load_weights(run_dir / "failure" / "step_49" / "inputs.safetensors")
    assert {name.split(".")[0] for name in inputs} == {"0", "1"}
    again = replay(run_dir / "failure" / "step_49")
    assert again.step == 49
    assert not np.isfinite(again.loss)
    assert again.parameters == ["decoder_blocks.0.mlp.fc1.weight"]
