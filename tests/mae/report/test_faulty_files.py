"""What a user sees of faulty files: thumbnails in the report, a table on the console."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from datasets.manifest.faults import FAULTS
from datasets.validation.validate import validate
from mae.report.faulty_files import EXAMPLES, fault_examples
from mae.report.page import report
from tests.datasets.conftest import KINDS, encode, picture

FILES = {
    "train/cat/0.jpg": KINDS["rgb.jpg"](0),
    "train/cat/cut.jpg": encode(picture(1, (300, 200)), "JPEG")[:-800],
    "train/cat/cmyk.jpg": KINDS["cmyk.jpg"](2),
    "train/cat/text.jpg": b"<script>alert(1)</script>",
    "train/cat/large.png": KINDS["large.png"](0),
    "val/cat/0.jpg": KINDS["rgb.jpg"](3),
} | {f"train/cat/grey{i}.jpg": KINDS["grey.jpg"](10 + i) for i in range(EXAMPLES + 3)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "images"


def thumbnail(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


def test_examples_of_each_fault(root: Path) -> None:
    directory = validate(root, root.parent / "out").directory
    found = {examples.fault: examples.files for examples in fault_examples(directory / "manifest.parquet", root)}
    assert list(found) == [fault for fault in FAULTS if fault in found]
    assert set(found) == {"not_image", "too_large", "truncated", "cmyk", "grey", "few_images"}
    assert [len(found[fault]) for fault in ("grey", "truncated")] == [EXAMPLES, 1]
    assert thumbnail(str(found["truncated"][0].uri)).size == (160, 107)
    assert thumbnail(str(found["cmyk"][0].uri)).mode == "RGB"
    assert found["not_image"][0].uri is None
    assert found["too_large"][0].uri is None
    (root / "train/cat/cmyk.jpg").unlink()
    again = {examples.fault: examples.files for examples in fault_examples(directory / "manifest.parquet", root)}
    assert again["cmyk"][0] == found["cmyk"][0]._replace(uri=None)


def test_the_report_shows_them(root: Path) -> None:
    directory = validate(root, root.parent / "out").directory
    run = root.parent / "run"
    run.mkdir()
    (run / "config.yaml").write_text("task: pretrain\nname: pets\npretrain: {epochs: 2, warmup_epochs: 1}\n")
    step = {"step": 1, "epoch": 1.0, "loss": 1.0, "lr": 0.1, "samples_per_second": 1.0, "seconds": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    facts = {"name": "pets", "root": str(root), "train": 9, "val": 1, "classes": ["cat"], "faults": {}}
    (run / "data.json").write_text(json.dumps({**facts, "records": str(directory)}))
    page = report(run).path.read_text()
    assert "What validation found" in page
    assert "train/cat/cut.jpg" in page
    assert len(re.findall("data:image/jpeg;base64,", page)) == 2 * EXAMPLES + 2  # greys, few_images, truncated, cmyk
    assert "<script>" not in page
    (run / "data.json").write_text(json.dumps({**facts, "records": str(root.parent / "gone")}))
    assert "What validation found" not in report(run).path.read_text()


def test_the_table_on_the_console(root: Path) -> None:
    photo = KINDS["rgb.jpg"](5)
    (root / "train/cat/extra.jpg").write_bytes(
        photo[:2] + b"\xff\xe2\0\x08MPF\0??" + photo[2:-2] + bytes(20) + photo[-2:]
    )
    command = [sys.executable, "-m", "mae", "data", "validate", str(root), "--out", str(root.parent / "out")]
    done = subprocess.run([*command, "--policy", "grey=exclude"], capture_output=True, text=True, check=True)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stderr.splitlines() if "│" in line]
    shown = {cells[0].split(":")[0]: cells[1:3] for cells in lines if cells[1]}
    assert shown["grey"] == [str(EXAMPLES + 3), "exclude"]
    assert shown["cmyk"] == ["1", "convert"]
    assert shown["extraneous"] == ["1", "accept"]
    assert "1 files: warning of the decoder: UserWarning: Image appears to be a malformed" in done.stderr
    result = json.loads(done.stdout)
    assert result["found"]["grey"] == EXAMPLES + 3
    assert list(result["warnings"].values()) == [1]
    wrong = subprocess.run([*command, "--policy", "grey=ignore"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "policy: expected grey= one of accept, convert, exclude, fail, found 'ignore'" in wrong.stderr
