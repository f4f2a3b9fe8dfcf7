from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from datasets.stage import InputError, StageResult
from flows.pretrain import NEEDS, REAL_JOB, load_job, mae_pretrain, plan
from flows.stages import finished, stage

ALL = list(NEEDS)
OWN_IMAGES = [name for name in ALL if name != "sample-data"]


@pytest.mark.parametrize(
    ("stages", "own_images", "expected"),
    [
        pytest.param(None, False, ALL, id="all"),
        pytest.param(None, True, OWN_IMAGES, id="all-of-own-images"),
        pytest.param(["validate"], False, ["sample-data", "validate"], id="what-it-needs"),
        pytest.param(["validate"], True, ["validate"], id="own-images-need-no-sample"),
        pytest.param(["rank-table"], False, ["rank-table"], id="needs-nothing"),
        pytest.param(["pretrain"], True, ["validate", "shard", "rank-table", "pretrain"], id="two-needs"),
        pytest.param(["shard", "rank-table"], True, ["validate", "shard", "rank-table"], id="two-named"),
        pytest.param([], False, [], id="none-named"),
    ],
)
def test_plan(stages: list[str] | None, own_images: bool, expected: list[str]) -> None:
    assert plan(stages, own_images=own_images) == expected


def test_unknown_stage() -> None:
    with pytest.raises(InputError, match="found 'pre-train'; did you mean pretrain"):
        plan(["pre-train"], own_images=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(["pretrain.epoch=3"], r"pretrain\.epoch: .*did you mean epochs", id="unknown-key"),
        pytest.param(
            ["task=finetune", "finetune={epochs: 2, batch_size: 2, blr: 1, warmup_epochs: 1}"], "task", id="task"
        ),
        pytest.param(["data.records=somewhere"], r"data\.records: expected nothing", id="records"),
    ],
)
def test_job_that_is_none_of_this_flow(tiny_job: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_job(str(tiny_job), overrides, None)


def test_data_root_takes_the_place_of_the_configs(tiny_job: Path) -> None:
    assert load_job(str(tiny_job), ["data.root=there"], "here").data.root == "here"
    assert load_job(str(tiny_job), ["data.root=there"], None).data.root == "there"


def test_ascend_without_npu_fails_before_any_stage(tiny_job: Path, tiny_root: Path, workspace: Path) -> None:
    with pytest.raises(InputError, match=r"found 0 on this machine; .*configs/demo\.yaml"):
        mae_pretrain.fn(str(tiny_job), ["device.target=Ascend"], str(tiny_root))
    assert not workspace.exists()


def test_real_job_is_the_default_and_for_ascend() -> None:
    assert load_job(REAL_JOB, [], None).device.target == "Ascend"
    assert mae_pretrain.parameters.properties["config"]["default"] == REAL_JOB


@pytest.mark.usefixtures("prefect_api")
class TestOnAServer:
    def test_second_run_reuses(
        self, tiny_job: Path, tiny_root: Path, workspace: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for expected in ("done", "reused"):
            caplog.clear()
            with caplog.at_level("INFO", logger="flows"):
                mae_pretrain(str(tiny_job), [], str(tiny_root), None, ["shard", "rank-table"])
            lines = [record.getMessage() for record in caplog.records if record.name == "flows.stages"]
            assert [line.split(" in ")[0] for line in lines] == [
                f"{name}: {expected}" for name in ("validate", "shard", "rank-table")
            ]
        assert len(list((workspace / "records").glob("tiny-*/index.json"))) == 1

    def test_corrupt_image_is_a_row_and_not_a_failure(self, tiny_job: Path, tiny_root: Path, workspace: Path) -> None:
        root = workspace.parent / "images"
        shutil.copytree(tiny_root, root)
        victim = next((root / "train" / "bag").glob("*.JPEG"))
        victim.write_bytes(victim.read_bytes()[:100])
        mae_pretrain(str(tiny_job), [], str(root), None, ["validate"])
        assert '"corrupt": 1' in next((workspace / "datasets").glob("images-*/validation.json")).read_text()

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
        assert "tried again" not in caplog.text


class Written(StageResult):
    path: Path


@pytest.mark.usefixtures("prefect_api")
def test_stage_whose_file_is_not_there_is_an_error(tmp_path: Path) -> None:
    @stage("forgetful")
    def forgetful() -> Written:
        return Written(path=tmp_path / "nothing")

    with pytest.raises(InputError, match="stage forgetful: expected files as its result names them"):
        finished(forgetful, lambda result: result.path.is_file())
