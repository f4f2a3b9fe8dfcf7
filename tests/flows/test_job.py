from __future__ import annotations

from pathlib import Path

import pytest

from datasets.base.errors import InputError
from flows.job import NEEDS, load_job, needed_stages

ALL = list(NEEDS)
OWN_IMAGES = [name for name in ALL if name != "sample-data"]


@pytest.mark.parametrize(
    ("stages", "own_images", "expected"),
    [
        pytest.param(None, False, ALL, id="all"),
        pytest.param(None, True, OWN_IMAGES, id="all-of-own-images"),
        pytest.param(["validate"], False, ["sample-data", "validate"], id="with-those-it-needs"),
        pytest.param(["validate"], True, ["validate"], id="own-images-need-no-sample"),
        pytest.param(["rank-table"], False, ["rank-table"], id="needs-nothing"),
        pytest.param(["pretrain"], True, ["validate", "shard", "rank-table", "pretrain"], id="two-needs"),
        pytest.param(["shard", "rank-table"], True, ["validate", "shard", "rank-table"], id="two-named"),
        pytest.param([], False, [], id="none-named"),
    ],
)
def test_needed_stages(stages: list[str] | None, own_images: bool, expected: list[str]) -> None:
    assert needed_stages(stages, own_images=own_images) == expected


def test_unknown_stage() -> None:
    with pytest.raises(InputError, match="found 'pre-train'; did you mean pretrain"):
        needed_stages(["pre-train"], own_images=False)


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
def test_unsuitable_job_is_an_error(tiny_job: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_job(str(tiny_job), overrides, None)


def test_data_root_replaces_the_configs(tiny_job: Path) -> None:
    assert load_job(str(tiny_job), ["data.root=there"], "here").data.root == "here"
    assert load_job(str(tiny_job), ["data.root=there"], None).data.root == "there"
