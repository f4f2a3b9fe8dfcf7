"""A loss that is not finite: what is kept of the step, that it runs again, and that training goes on where it may."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from datasets.base.errors import InputError
from datasets.base.files import write_json
from datasets.batches import epoch_order
from datasets.records import sources
from mae.cli import app
from mae.runs import checkpoint
from mae.runs.failure import failures, fall_back
from mae.runs.model_file import load_weights
from mae.runs.run import Run
from mae.train import train
from mae.training.failed_step import replay
from tests.mae.made_runs import metrics, planted, with_


def test_a_failed_step_is_kept_and_runs_again(tiny, trained, tmp_path):
    """NaN in one parameter: step 49 fails, is seen at step 50, and of the batch between nothing is kept."""
    job = with_(tiny, pretrain={"epochs": 5})
    run_dir = planted(job, trained, tmp_path, "decoder_blocks.0.mlp.fc1.weight", np.nan).directory
    with pytest.raises(InputError, match="step 49: expected a finite loss and gradient") as error:
        train(job, workspace=tmp_path)
    kept = run_dir / "failure" / "step_49"
    assert f"mae train --replay {kept}" in str(error.value)
    facts = json.loads((kept / "failure.json").read_text())
    assert (facts["step"], facts["epoch"], facts["update"]) == (49, 4, 0)
    records = epoch_order(200, seed=job.seed, epoch=4)[:16].tolist()
    assert [sample["record"] for sample in facts["samples"]] == records
    assert facts["samples"][3]["path"] == sources(job.data.records, "train", records[3:4])[0].path
    before = load_weights(run_dir / "checkpoints" / "48" / "model.safetensors")
    for name, value in load_weights(kept / "model.safetensors").items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    state = load_weights(run_dir / "checkpoints" / "48" / "optimizer.safetensors")
    for name, value in load_weights(kept / "optimizer.safetensors").items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
    found = CliRunner().invoke(app, ["train", "--replay", str(kept)])
    assert found.exit_code == 0, found.output
    for text in ("decoder_blocks.0.mlp.fc1.weight", "cls_token", "nan"):
        assert text in found.output.lower()
    assert checkpoint.newest(run_dir / "checkpoints") == run_dir / "checkpoints" / "48"


@pytest.mark.slow
def test_a_decoder_that_overflows_goes_on_in_float32(tiny, trained, tmp_path):
    """Its first layer gives more than float16 holds, and no smaller loss scale helps."""
    job = with_(tiny, pretrain={"epochs": 5, "on_non_finite": "decoder_float32"}, compute={"dtype": "float16"})
    half = tmp_path / "half"
    made = planted(job, trained, half, "decoder_blocks.0.mlp.fc1.weight", 3e6)
    run_dir = made.directory
    moments = run_dir / "checkpoints" / "48" / "optimizer.safetensors"
    scale = {"loss_scale": 65536.0, "loss_scale_good_updates": 0.0, "loss_scale_overflows": 0.0}
    scalars = {name: np.array(value, np.float32) for name, value in scale.items()}
    save_file({**load_weights(moments), **scalars}, moments)
    state = checkpoint.load_state(moments.parent).model_dump(exclude={"digests"})
    checkpoint.write_state(moments.parent, **state)
    run = train(job, workspace=half)
    assert list(failures(made)) == ["step_49"]
    assert made.fallback.from_step == 48
    assert {line["decoder"] for line in metrics(run_dir)} == {"float32"}
    assert run.steps == 60
    assert checkpoint.load_state(run.checkpoint.parent).decoder_float32


@pytest.mark.parametrize(
    ("name", "policy", "compute", "failed", "expected"),
    [
        ("wanted", "decoder_float32", {"dtype": "float16"}, True, True),
        ("not wanted", "stop", {"dtype": "float16"}, True, False),
        ("in float32 already", "decoder_float32", {"dtype": "float32"}, True, False),
        ("the decoder too", "decoder_float32", {"dtype": "float16", "decoder_float32": True}, True, False),
        ("another error", "decoder_float32", {"dtype": "float16"}, False, False),
    ],
)
def test_when_ranks_are_started_again(tiny, tmp_path, name, policy, compute, failed, expected):
    job = with_(tiny, pretrain={"on_non_finite": policy}, compute=compute)
    if failed:
        write_json(tmp_path / "failure" / "step_7" / "failure.json", {})
    run = Run(tmp_path, job)
    assert fall_back(run, {}) == expected, name
    assert not fall_back(run, {}), "once only"


def test_nothing_to_replay(tmp_path):
    with pytest.raises(InputError, match=r"failure\.json"):
        replay(tmp_path)


def test_a_config_or_a_failure(tiny_yaml):
    for arguments in ([], [str(tiny_yaml), "--replay", "x"]):
        assert CliRunner().invoke(app, ["train", *arguments]).exit_code == 2
