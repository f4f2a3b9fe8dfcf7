"""A run that begins at another's checkpoint: where it goes on from, what is refused."""

import json
import shutil

import pytest

from datasets.base.errors import InputError
from mae.report.page import report
from mae.runs import checkpoint
from mae.runs.fork import FORK, fork
from mae.runs.run import Run
from mae.train import train
from tests.mae.made_runs import lines, metrics, with_


def test_a_change_that_changes_nothing_ends_as_the_other_run(tiny, trained, tmp_path):
    """Gradients are never so long: weights and curve are the same to the bit, from the second epoch's end on."""
    changed = with_(tiny, pretrain={"clip_grad": 1e9})
    run = train(changed, workspace=tmp_path, start=trained.run_dir / "checkpoints" / "24")
    assert run.run_dir != trained.run_dir
    assert "resuming after epoch 2" in (run.run_dir / "logs" / "rank_0.log").read_text()
    assert run.digest == trained.digest
    assert lines(run.run_dir) == lines(trained.run_dir)
    assert json.loads((run.run_dir / FORK).read_text()) == {
        "checkpoint": str(trained.run_dir / "checkpoints" / "24"),
        "step": 24,
        "changed": "pretrain.clip_grad 1000000000.0 where the checkpoint has None",
    }
    assert not (tmp_path / "history").exists(), "it is no example of its recipe"
    assert "<td>step 24 of" in report(Run.open(run.run_dir)).path.read_text()
    assert train(changed, workspace=tmp_path, start=trained.run_dir / "checkpoints" / "24").reused


def test_what_has_begun_so_goes_on_and_what_has_begun_otherwise_is_left_alone(tiny, trained, tmp_path):
    changed = with_(tiny, pretrain={"blr": 1e-3})
    new = Run.of(changed, tmp_path)
    run_dir = new.directory
    fork(trained.run_dir / "checkpoints" / "36", new)
    assert [line["step"] for line in metrics(run_dir)] == [10, 12, 20, 24, 30, 36]
    later = run_dir / "checkpoints" / "40"
    shutil.copytree(run_dir / "checkpoints" / "36", later)
    state = checkpoint.load_state(later).model_dump(exclude={"digests"})
    checkpoint.write_state(later, **{**state, "step": 40})
    fork(trained.run_dir / "checkpoints" / "36", new)
    assert checkpoint.newest(run_dir / "checkpoints") == later
    with pytest.raises(InputError, match="expected a run that has not begun, found checkpoints of it"):
        fork(trained.run_dir / "checkpoints" / "24", new)
    with pytest.raises(InputError, match="expected a checkpoint of another run, found one of this run"):
        fork(trained.run_dir, Run.open(trained.run_dir), fresh=True)
    assert trained.checkpoint.exists()
    fork(trained.run_dir / "checkpoints" / "24", new, fresh=True)
    assert checkpoint.newest(run_dir / "checkpoints") == run_dir / "checkpoints" / "24"
    assert [line["step"] for line in metrics(run_dir)] == [10, 12, 20, 24]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"depth": 2}}, "differs in pretrain and compute only, found model.depth 2 where"),
        ({"pretrain": {"batch_size": 8, "blr": 1e-3}}, "found global batch 8 where the checkpoint has 16; undo"),
        ({"seed": 4}, "found seed 4 where the checkpoint has 3; undo"),
        (
            {"compute": {"dtype": "float16"}, "damaged": "optimizer.safetensors"},
            "found optimizer.safetensors has other",
        ),
    ],
)
def test_what_is_refused(tiny, trained, tmp_path, sections, message):
    source = tmp_path / "36"
    shutil.copytree(trained.run_dir / "checkpoints" / "36", source)
    if "damaged" in sections:
        with (source / sections["damaged"]).open("ab") as file:
            file.write(b" ")
    changes = {name: values for name, values in sections.items() if name not in ("damaged", "seed")}
    changed = with_(tiny, **changes).model_copy(update={"seed": sections.get("seed", 3)})
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=message):
        fork(source, Run(tmp_path / "run", changed), fresh=True)
    assert (tmp_path / "run").exists(), "what was there stays"
