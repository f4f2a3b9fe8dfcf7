"""Locks of NPUs: held by a process tree, shown with their owner, free when the last process has ended."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from datasets.base.errors import InputError
from mae.launch import holder, run_ranks
from mae.launch import locks as module
from mae.launch.locks import DeviceHeld, devices_held

ROOT = Path(__file__).parents[3]
LAUNCHER = """
import sys
from pathlib import Path
from mae.launch import locks, ranks
locks.FOLDERS, folder = (sys.argv[1],), Path(sys.argv[2])
ranks.run_ranks(["-c", sys.argv[3]], ranks=1, devices=[3], log_dir=folder / "logs", run_dir=folder)
"""


def test_devices_are_held_together_or_not_at_all(locks):
    with devices_held([0, 1], "run a"):
        assert holder(0).startswith(f"run a (process {os.getpid()} of ")
        with pytest.raises(DeviceHeld) as caught, devices_held([2, 1], "run b"):
            pass
        expected = f"NPU 1 of this server: expected an NPU that no other job uses, found that it is held by {holder(1)}"
        assert str(caught.value).startswith(expected)
        with devices_held([2, 3], "run b"):
            assert holder(3).startswith("run b (")
    assert [holder(device) for device in range(4)] == [None] * 4


def test_no_lock_is_taken_without_npus(locks, tmp_path):
    run_ranks(["-c", ""], ranks=1, log_dir=tmp_path / "logs", run_dir=tmp_path)
    assert not list(locks.iterdir())


@pytest.mark.parametrize("content", [b"", b"[1", b"[1]", b"{}", b"\xff"])
def test_a_holder_that_wrote_something_else_is_another_process(locks, content):
    path = locks / "maeflow-npu-5.lock"
    path.write_bytes(content)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holder(5) == "another process"


def test_a_second_run_is_refused_before_its_ranks_start_and_leaves_nothing(locks, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    command = [sys.executable, "-c", LAUNCHER, str(locks), str(first), "import time; time.sleep(100)"]
    launcher = subprocess.Popen(command, cwd=ROOT)
    try:
        while not (first / "logs/rank_0.log").exists():
            time.sleep(0.05)
        with pytest.raises(InputError, match=rf"NPU 3 of this server: .* held by first \(process {launcher.pid} of "):
            run_ranks(["-c", ""], ranks=2, devices=[2, 3], log_dir=second / "logs", run_dir=second)
        assert not list(second.iterdir())
    finally:
        launcher.terminate()
        launcher.wait()


def test_an_npu_is_free_when_the_last_process_of_the_tree_has_ended(locks, tmp_path):
    """A process that a rank forked outlives the killed launcher for a second, and still uses the NPU."""
    source = (
        "import os, time\n"
        "if os.fork() == 0: time.sleep(2); os._exit(0)\n"
        f"open({str(tmp_path / 'forked')!r}, 'w').close()\ntime.sleep(100)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(locks), str(tmp_path), source], cwd=ROOT)
    while not (tmp_path / "forked").exists():
        time.sleep(0.02)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    assert holder(3).startswith(f"{tmp_path.name} (process {launcher.pid} of ")
    deadline = time.monotonic() + 10
    while holder(3) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_users_share_the_locks(monkeypatch):
    """Another user made the file, with an umask of its own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o1777)
        monkeypatch.setattr(module, "FOLDERS", (folder,))
        source = (
            "import os\nfrom mae.launch import locks\nos.setuid(65534)\nos.umask(0o77)\n"
            f"locks.FOLDERS = ({folder!r},)\n"
            "with locks.devices_held([4], 'theirs'): print(flush=True); input()"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        other.stdout.readline()
        try:
            assert holder(4).startswith(f"theirs (process {other.pid} of nobody, since ")
        finally:
            other.communicate(b"\n")
        with devices_held([4], "ours"):
            assert holder(4).startswith("ours (")
