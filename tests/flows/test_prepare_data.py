from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from flows.prepare_data import mae_prepare_data


@pytest.mark.usefixtures("prefect_api")
def test_archives_are_unpacked_validated_and_sharded(
    tiny_job: Path, tiny_root: Path, workspace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tar = tmp_path / "tiny.tar"
    with tarfile.open(tar, "w") as archive:
        for split in ("train", "val"):
            archive.add(tiny_root / split, split)
    for expected in ("done", "reused"):
        caplog.clear()
        with caplog.at_level("INFO", logger="flows"):
            records = mae_prepare_data(str(tiny_job), tars=[str(tar)])
        lines = [record.getMessage() for record in caplog.records if record.name == "flows.stages"]
        assert [line.split(" in ")[0] for line in lines] == [
            f"{name}: {expected}" for name in ("unpack", "validate", "shard")
        ]
        assert (records.train, records.val) == (100, 20)
    assert len(list(workspace.glob("datasets/images-*/unpack.json"))) == 1
