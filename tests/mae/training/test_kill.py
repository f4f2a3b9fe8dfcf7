"""Real SIGKILLs of training: the run that continues ends as if nothing had happened, to the bit.

That a checkpoint survives a kill at every single moment of its writing is shown in tests/mae/runs/test_checkpoint.py.
"""

import pytest

from mae.runs import checkpoint
from mae.train import _resolved, train
from tests.mae.made_runs import killed, lines, steps, with_

pytestmark = pytest.mark.slow

RECIPE = {"epochs": 6, "warmup_epochs": 1, "ema": 0.9, "checkpoint_epochs": 50, "checkpoint_steps": 5}
TUNED = {"epochs": 5, "batch_size": 4, "accum_iter": 2, "drop_path": 0.3, "checkpoint_steps": 5}
KILLS = {"alone": ["rank", "write", "launcher"], "by two": ["one rank", "all ranks"]}


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_run_ends_as_an_undisturbed_one(tiny, trained, tmp_path, name):
    """Pre-training on one rank; fine-tuning with accumulation and stochastic depth on two."""
    job = with_(tiny, pretrain=RECIPE)
    if name == "by two":
        job = with_(tiny, finetune=TUNED, device={"ranks": 2})
        job = job.model_copy(update={"task": "finetune", "init": str(trained.checkpoint)})
    job = _resolved(job)
    whole = train(job, workspace=tmp_path / "whole")
    workspace = tmp_path / "killed"
    workspace.mkdir()
    halves = [killed(job, workspace, who) for who in KILLS[name]]
    run = train(job, workspace=workspace)
    assert lines(run.run_dir) == lines(whole.run_dir)
    states = [checkpoint.load_state(r.checkpoint.parent) for r in (run, whole)]
    assert states[0] == states[1]  # with the digests of weights, averages, moments and loss scale
    assert any(halves) or name != "alone", "no kill met a checkpoint that was being written"
    assert sorted(steps(run.run_dir)) == sorted(steps(whole.run_dir))
    assert not list(run.run_dir.glob("checkpoints/*.partial-*"))
