"""Faulty files: as thumbnails in the report, and in a table on the console."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from datasets.base.errors import InputError
from datasets.manifest.faults import FAULTS
from datasets.validation.validate import Validation, validate
from mae.cli import app
from mae.report import print_faults
from mae.report.faulty_files import EXAMPLES, faulty_files
from tests.datasets.conftest import KINDS, encode, picture
from tests.mae.report.run_files import bare_run, page_of, write

FILES = {
    "train/cat/0.jpg": KINDS["rgb.jpg"](0),
    "train/cat/cut.jpg": encode(picture(1, (300, 200)), "JPEG")[:-800],
    "train/cat/cmyk.jpg": KINDS["cmyk.jpg"](2),
    "train/cat/text.jpg": b"<script>alert(1)</script>",
    "train/cat/large.png": KINDS["large.png"](0),
    "val/cat/0.jpg": KINDS["rgb.jpg"](3),
} | {f"train/cat/grey{i}.jpg": KINDS["grey.jpg"](10 + i) for i in range(EXAMPLES + 3)}


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    folder = tmp_path_factory.mktemp("faulty")
    for name, content in FILES.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return validate(folder / "images", folder / "out", workers=1)


def thumbnail(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


def test_examples_of_each_fault(validated: Validation, tmp_path: Path) -> None:
    manifest = validated.directory / "manifest.parquet"
    found = faulty_files(manifest, validated.root)
    assert list(found) == [fault for fault in FAULTS if fault in found]
    assert set(found) == {"not_image", "too_large", "truncated", "cmyk", "grey", "few_images"}
    assert [len(found[fault]) for fault in ("grey", "truncated")] == [EXAMPLES, 1]
    assert thumbnail(str(found["truncated"][0].uri)).size == (160, 107)
    assert thumbnail(str(found["cmyk"][0].uri)).mode == "RGB"
    assert found["not_image"][0].uri is None
    assert found["too_large"][0].uri is None
    shutil.copytree(validated.root, tmp_path / "images")
    (tmp_path / "images/train/cat/cmyk.jpg").unlink()
    assert faulty_files(manifest, tmp_path / "images")["cmyk"] == [found["cmyk"][0]._replace(uri=None)]


def test_the_report_shows_them(validated: Validation, tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    facts = {"name": "pets", "root": str(validated.root), "train": 9, "val": 1, "classes": ["cat"], "faults": {}}
    write(run, "data.json", {**facts, "records": str(validated.directory)})
    page = page_of(run)
    assert "Faults that validation found" in page.text
    assert "train/cat/cut.jpg" in page.text
    assert f"truncated: a file that {FAULTS['truncated'].meaning}" in page.text
    assert (
        len(re.findall("data:image/jpeg;base64,", page.html)) == 2 * EXAMPLES + 2
    )  # grey, few_images; truncated, cmyk
    assert "<script>" not in page.html
    write(run, "data.json", {**facts, "records": str(tmp_path / "gone")})
    assert "Faults that validation found" not in page_of(run).text


def test_the_table_on_the_console(validated: Validation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    command = ["data", "validate", str(validated.root), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--policy", "grey=exclude"])
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stderr.splitlines() if "│" in line]
    shown = {cells[0].split(":")[0]: cells[1:] for cells in lines if cells[1]}
    assert shown["grey"] == [str(EXAMPLES + 3), "exclude", "train/cat/grey0.jpg"]
    assert shown["cmyk"] == ["1", "convert", "train/cat/cmyk.jpg"]
    assert json.loads(done.stdout)["found"]["grey"] == EXAMPLES + 3
    wrong = CliRunner().invoke(app, [*command, "--policy", "grey=ignore"])
    assert isinstance(wrong.exception, InputError)
    assert "policy: expected grey= one of accept, convert, exclude, fail, found 'ignore'" in str(wrong.exception)


def test_warnings_of_the_decoder(validated: Validation, capsys: pytest.CaptureFixture[str]) -> None:
    print_faults(validated.model_copy(update={"found": {}, "warnings": {"JPEG: [odd] bytes": 2}}))
    assert capsys.readouterr().err == "2 files: warning of the decoder: JPEG: [odd] bytes\n"
