"""Outputs are whole or absent, also after SIGKILL, and nobody's files are replaced."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasets.base.digests import checksum, file_checksum
from datasets.base.errors import InputError
from datasets.base.files import atomic_directory, refuse_foreign
from datasets.sample import unpack_sample
from datasets.sharding import check_records, write_records
from datasets.validation.validate import load_validation, validate

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A sample of 2,000 images and its validation: inputs that take a moment to work on."""
    base = tmp_path_factory.mktemp("prepared")
    data = unpack_sample(base / "data", train_per_class=150, val_per_class=50)
    validate(data.root, base / "validation")
    write_records(base / "validation", base / "records")
    return base


STAGES = {  # name: (what the killed process calls, the same call here, what a whole output must satisfy)
    "sample": (
        "import functools; from datasets.sample import unpack_sample; args = (OUT,)\n"
        "stage = functools.partial(unpack_sample, train_per_class=200, val_per_class=50)",
        lambda _, out: unpack_sample(out, train_per_class=200, val_per_class=50),
        lambda _, out: unpack_sample(out, train_per_class=200, val_per_class=50).reused,
    ),
    "validate": (
        "from datasets.validation.validate import validate as stage; args = (BASE + '/data', OUT)",
        lambda base, out: validate(base / "data", out),
        lambda base, out: load_validation(out).manifest_digest == load_validation(base / "validation").manifest_digest,
    ),
    "shard": (
        "import mindspore.mindrecord; from datasets.sharding import write_records as stage; "
        "args = (BASE + '/validation', OUT)",
        lambda base, out: write_records(base / "validation", out),
        lambda base, out: check_records(out).digest == check_records(base / "records").digest,
    ),
}


@pytest.mark.parametrize("moment", ["partial", 0.05, 0.3], ids=["at_first_file", "after_50_ms", "after_300_ms"])
@pytest.mark.parametrize("case", STAGES)
def test_sigkill_leaves_no_half_output(prepared, tmp_path, case, moment):
    script, stage, whole = STAGES[case]
    out = tmp_path / "out"
    code = f"BASE, OUT = {str(prepared)!r}, {str(out)!r}\n{script}\nprint('ready', flush=True)\nstage(*args)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if moment == "partial":
            deadline = time.monotonic() + 30
            while not out.exists() and not any(path.is_file() for path in tmp_path.glob("out.partial-*/**/*")):
                assert time.monotonic() < deadline
        else:
            time.sleep(moment)
        process.send_signal(signal.SIGKILL)
    assert process.returncode in (-signal.SIGKILL, 0)
    assert not out.exists() or whole(prepared, out)
    stage(prepared, out)
    assert whole(prepared, out)
    assert os.listdir(tmp_path) == ["out"]


def test_failure_keeps_the_former_output(tmp_path):
    with atomic_directory(tmp_path / "out") as partial:
        (partial / "file").write_text("first")

    def fail() -> None:
        with atomic_directory(tmp_path / "out") as partial:
            (partial / "file").write_text("second")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "out/file").read_text() == "first"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("names", "refused"),
    [(None, False), ([], False), (["marker.json", "x"], False), (["x"], True)],
    ids=["missing", "empty", "ours", "foreign"],
)
def test_refuse_foreign(tmp_path, names, refused):
    if names is not None:
        (tmp_path / "out").mkdir()
        for name in names:
            (tmp_path / "out" / name).touch()
    if refused:
        with pytest.raises(InputError, match=r"or one that holds marker\.json"):
            refuse_foreign(tmp_path / "out", "marker.json")
    else:
        refuse_foreign(tmp_path / "out", "marker.json")


def test_refuse_foreign_file(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(InputError):
        refuse_foreign(tmp_path / "out", "marker.json")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_a_file_has_the_checksum_of_its_bytes(tmp_path, size):
    """The empty input's value is that of the published test vectors."""
    data = random.Random(size).randbytes(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert file_checksum(path) == f"xxh3:{checksum(data).hex()}"
    if not size:
        assert checksum(data).hex() == "99aa06d3014798d86001c324468d497f"
