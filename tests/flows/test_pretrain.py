from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from prefect import flow

from datasets.base.errors import InputError
from datasets.base.files import StageResult
from flows import evaluate as nightly
from flows.evaluate import mae_evaluate
from flows.job import NEEDS, REAL_JOB, load_job
from flows.pretrain import Chain, mae_pretrain
from flows.stages import finished, stage
from mae.config import load_config
from mae.device import DeviceHeld, context
from mae.launch import locks


def test_ascend_without_npu_fails_before_any_stage(tiny_job: Path, tiny_root: Path, workspace: Path) -> None:
    with pytest.raises(InputError, match=r"found 0 on this machine; .*configs/demo\.yaml"):
        mae_pretrain.fn(str(tiny_job), ["device.target=Ascend"], str(tiny_root))
    assert not workspace.exists()


def test_training_over_several_servers_is_refused_before_any_stage(
    tiny_job: Path, tiny_root: Path, workspace: Path
) -> None:
    with pytest.raises(
        InputError, match="found 2 servers with 16 ranks; training over several servers is not possible"
    ):
        mae_pretrain.fn(str(tiny_job), [], str(tiny_root), "configs/cluster_example.yaml")
    assert not workspace.exists()


def test_real_job_is_the_default_and_for_ascend() -> None:
    assert load_job(REAL_JOB, [], None).device.target == "Ascend"
    assert mae_pretrain.parameters.properties["config"]["default"] == REAL_JOB


@pytest.fixture(scope="class")
def job(tiny_job: Path, tiny_root: Path) -> tuple[str, list[str], str]:
    return str(tiny_job), ["pretrain.epochs=2"], str(tiny_root)


@pytest.fixture(scope="class")
def shared_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("chain")
        patch.setenv("MAE_WORKSPACE", str(path))
        yield path


@pytest.fixture(scope="class")
def chain(shared_workspace: Path, job: tuple[str, list[str], str], prefect_api: None) -> Chain:
    """The first run of the chain."""
    return mae_pretrain(*job)


class TestWholeChain:
    def test_results(self, chain: Chain, shared_workspace: Path) -> None:
        assert chain.run_dir == next((shared_workspace / "runs").glob("tiny-*"))
        assert (chain.run_dir / "metrics.jsonl").read_text().count("\n") > 0
        assert chain.report == chain.run_dir / "report" / "index.html"
        assert chain.report.is_file()
        assert list((chain.run_dir / "evaluations").glob("*.json"))

    def test_second_run_reuses_every_stage(
        self, chain: Chain, shared_workspace: Path, job: tuple[str, list[str], str], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("INFO", logger="flows"):
            assert mae_pretrain(*job).run_dir == chain.run_dir
        lines = [record.getMessage() for record in caplog.records if record.name == "flows.stages"]
        own_images = [name for name in NEEDS if name != "sample-data"]
        assert [line.split(" in ")[0] for line in lines] == [f"{name}: reused" for name in own_images]
        assert len(list((shared_workspace / "records").glob("tiny-*/index.json"))) == 1

    def test_the_flows_process_never_loads_mindspore(
        self, chain: Chain, shared_workspace: Path, tiny_root: Path
    ) -> None:
        """In a process of its own, as this one may have loaded it for another test."""
        code = """
import importlib, pkgutil, sys
from pathlib import Path

import flows
for module in pkgutil.iter_modules(flows.__path__):
    importlib.import_module(f"flows.{module.name}")
from mae.config import DeviceConfig
from mae.runs import Run
from tasks.evaluate import evaluate
from tasks.predict import predict
run, out = Run.open(Path(sys.argv[1])), Path(sys.argv[2])
predict.fn(run.newest(), [sys.argv[3]], out, DeviceConfig(), seed=1)
evaluate.fn("knn", run.newest(), run.records, run.config, run.workspace)
print(sorted(name for name in ("mindspore", "sklearn", "torch") if name in sys.modules))
"""
        image = next((tiny_root / "val").rglob("*.JPEG"))
        arguments = [chain.run_dir, shared_workspace / "predictions", image]
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
        assert done.stdout == "[]\n", done.stderr
        assert (shared_workspace / "predictions" / "predictions.parquet").is_file()
        (chain.run_dir / "evaluations" / "knn.json").unlink()

    def test_nightly_evaluation_measures_the_run_again(self, chain: Chain, shared_workspace: Path) -> None:
        written = mae_evaluate()
        assert [chain.run_dir.name in path.name for path in written] == [True]
        assert written == list((shared_workspace / "history" / "evaluations").glob("*.parquet"))


@pytest.mark.usefixtures("prefect_api")
class TestBadInput:
    def test_corrupt_image_is_a_row_and_not_a_failure(self, tiny_job: Path, tiny_root: Path, workspace: Path) -> None:
        root = workspace.parent / "images"
        shutil.copytree(tiny_root, root)
        victim = next((root / "train" / "bag").glob("*.JPEG"))
        victim.write_bytes(victim.read_bytes()[:100])
        mae_pretrain(str(tiny_job), [], str(root), None, ["validate"])
        assert '"truncated": 1' in next((workspace / "datasets").glob("images-*/validation.json")).read_text()

    @pytest.mark.parametrize(
        ("overrides", "stages", "message"),
        [
            pytest.param(
                ["pretrain.batch_size=200"], ["pretrain"], r"pretrain\.batch_size: .* at most 100", id="batch"
            ),
            pytest.param(
                ["finetune={epochs: 2, batch_size: 99, accum_iter: 2, blr: 1.0, warmup_epochs: 1}"],
                None,
                r"finetune\.batch_size: .* at most 100",
                id="batch-of-the-evaluation",
            ),
            pytest.param([], None, "at least 2 classes", id="no-labels"),
        ],
    )
    def test_what_would_fail_later_is_refused_before_anything_is_sharded(
        self,
        tiny_job: Path,
        tiny_root: Path,
        workspace: Path,
        overrides: list[str],
        stages: list[str] | None,
        message: str,
    ) -> None:
        root = tiny_root if overrides else tiny_root / "train" / "bag"
        with pytest.raises(InputError, match=message):
            mae_pretrain(str(tiny_job), overrides, str(root), None, stages)
        assert not (workspace / "records").exists()

    @pytest.mark.parametrize("fault", ["missing", "empty-class"])
    def test_images_at_fault_fail_once(
        self, tiny_job: Path, tiny_root: Path, workspace: Path, fault: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        root = workspace.parent / "images"
        if fault == "empty-class":
            shutil.copytree(tiny_root, root)
            (root / "train" / "empty").mkdir()
        with pytest.raises(InputError, match="images"):
            mae_pretrain(str(tiny_job), [], str(root), None, ["validate"])
        assert "is tried again" not in caplog.text  # which tests/tasks/test_stage.py finds after other errors


def test_the_night_waits_for_npus_that_a_job_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (3, 5):
        (tmp_path / f"davinci{number}").touch()
    monkeypatch.setattr(context, "ASCEND_DEVICES", str(tmp_path))
    monkeypatch.setattr(locks, "FOLDERS", (str(tmp_path),))
    tmp_path.chmod(0o777)  # as /run/lock
    monkeypatch.setattr(nightly, "LOOK_SECONDS", 0.1)
    caplog.set_level("INFO")
    job = load_config("configs/pretrain_vit_b16_800ep.yaml", ["device.ranks=2"])
    with locks.devices_held([3], "run x"):
        monkeypatch.setattr(nightly, "WAIT_HOURS", 0.3 / 3600)
        with pytest.raises(DeviceHeld, match=r"expected 2 that no job uses, found NPU 3 held by run x \(process"):
            nightly._wait_for_devices("night", job)
        nightly._wait_for_devices("night", load_config(REAL_JOB, ["evaluate.target=CPU"]))
        monkeypatch.setattr(nightly, "WAIT_HOURS", 1)
        waiting = Thread(target=nightly._wait_for_devices, args=("night", job))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(20)
    assert not waiting.is_alive()
    lines = [record.getMessage() for record in caplog.records if record.name == "flows.evaluate"]
    assert len(lines) == 2, "one line each time it waits, not one each time it looks"
    assert context.free_devices("Ascend", 2) == [3, 5]


class Written(StageResult):
    path: Path


@pytest.mark.usefixtures("prefect_api")
def test_stage_whose_file_is_not_there_is_an_error(tmp_path: Path) -> None:
    @stage("forgetful", lambda made: made.path.is_file())
    def forgetful() -> Written:
        return Written(path=tmp_path / "nothing")

    with pytest.raises(InputError, match="stage forgetful: expected the files that its result names"):
        finished(forgetful)


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(("lost", "executions"), [(False, 1), (True, 2)])
def test_retry_keeps_a_finished_stage_only_if_its_files_are_there(tmp_path: Path, lost: bool, executions: int) -> None:
    path, executed, attempts = tmp_path / "file", [], []

    @stage(f"writing-{lost}", lambda made: made.path.is_file())
    def writing() -> Written:
        executed.append(1)
        path.write_text("content")
        return Written(path=path)

    @flow(retries=1)
    def parent() -> None:
        attempts.append(1)
        assert finished(writing) == Written(path=path)
        if len(attempts) == 1:
            if lost:
                path.unlink()
            raise OSError("the next stage fails")

    parent()
    assert (len(attempts), len(executed), path.is_file()) == (2, executions, True)
