"""The odd files of Pillow's own tests, each with the class it is given: `make test-pillow-images`.

pillow_images.tsv beside this file has path, status and faults of every file in Tests/images of Pillow 13.0.0.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from datasets.images.inspect import MAX_PIXELS
from tests.datasets.conftest import KINDS, read_manifest

IMAGES = os.environ.get("PILLOW_IMAGES")
TABLE = Path(__file__).with_name("pillow_images.tsv")
EXCLUDED = {"not_image", "too_large", "truncated", "corrupt", "unsupported", "empty", "unreadable"}

pytestmark = pytest.mark.skipif(IMAGES is None, reason="$PILLOW_IMAGES names no folder: see `make test-pillow-images`")


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """The rows by path below Tests/images, and what the command printed to stderr."""
    root = tmp_path_factory.mktemp("pillow")
    shutil.copytree(str(IMAGES), root / "images/train/all")
    (root / "images/val/all").mkdir(parents=True)
    (root / "images/val/all/0.jpg").write_bytes(KINDS["rgb.jpg"](0))
    command = [sys.executable, "-m", "mae", "data", "validate", root / "images", "--out", root / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    rows = read_manifest(root / "out/manifest.parquet")
    return {row.path.removeprefix("train/all/"): row for row in rows if row.split == "train"}, done.stderr


def test_every_file_has_its_class(validated):
    rows, _ = validated
    expected = {line.split("\t")[0]: line.split("\t")[1:] for line in TABLE.read_text().splitlines()}
    assert {path: [row.status, row.faults] for path, row in rows.items()} == expected


def test_what_pillow_refuses_is_excluded(validated):
    rows, _ = validated
    refused = 0
    for path, row in rows.items():
        data = Path(str(IMAGES), path).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = Image.open(io.BytesIO(data))
                if image.width * image.height <= MAX_PIXELS:
                    image.load()
            except Exception:
                refused += 1
                assert row.status in EXCLUDED, path
    assert refused > 50


def test_no_decoder_speaks_to_the_console(validated):
    _, printed = validated
    assert "Traceback" not in printed
    assert "Warning:" not in printed.replace("warning of the decoder: UserWarning:", "")
    assert "TIFF" not in printed.replace("TIFF file", "")
