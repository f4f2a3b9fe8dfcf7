"""Calls in child processes: typed arguments and results, log lines, errors, and the end of the child."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasets.base.errors import InputError
from datasets.base.processes import started
from mae.config import DeviceConfig, load_config
from mae.launch import RanksFailed
from mae.launch.call import in_child
from tests.mae.launch import called

HERE = DeviceConfig()


@pytest.mark.parametrize("ranks", [1, 2])
def test_types_and_log_lines_survive(tmp_path, caplog, ranks):
    caplog.set_level(logging.INFO)
    pairs = [called.Pair(Path("a"), 0.1), called.Pair(Path("b"), 0.2)]
    found = in_child(called.described, HERE, near=tmp_path / "new", ranks=ranks)(
        load_config("configs/demo.yaml"), pairs, number=1 / 3
    )
    assert found["pid"] != os.getpid()
    assert found == {"sum": 0.1 + 0.2, "number": 1 / 3, "pid": found["pid"]}
    lines = [(r.levelno, r.getMessage()) for r in caplog.records if r.name == "mae.called"]
    assert lines == [(logging.INFO, "rank 0 of demo\nsecond line"), (logging.WARNING, "2 pairs")]
    assert list((tmp_path / "new").iterdir()) == []


def test_an_input_error_arrives_as_it_is(tmp_path):
    with pytest.raises(InputError, match=r"^/nowhere: expected a, found b; c$"):
        in_child(called.refused, HERE, near=tmp_path)(Path("/nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_the_log_of_a_dead_child_stays(tmp_path):
    with pytest.raises(RanksFailed, match="rank 0 was killed by SIGKILL") as error:
        in_child(called.killed, HERE, near=tmp_path)()
    (folder,) = tmp_path.iterdir()
    assert str(folder / "rank_0.log") in str(error.value)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_child_ends_with_its_parent(tmp_path, end):
    code = (
        "import sys\nfrom pathlib import Path\nfrom mae.config.sections import DeviceConfig\n"
        "from mae.launch.call import in_child\nfrom tests.mae.launch.called import endless\n"
        "in_child(endless, DeviceConfig(), near=Path(sys.argv[1]))(Path(sys.argv[1]) / 'pid')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        assert parent.poll() is None, parent.stderr.read()
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    parent.send_signal(end)
    parent.wait(10)
    deadline = time.monotonic() + 10
    while started(child) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
