"""A thread that reads images fails, is killed or stands still: the run ends, says so, and goes on as if nothing was."""

from pathlib import Path

import pytest

from mae.health.follow import Follower
from mae.launch.ranks import RanksFailed, run_ranks
from mae.runs.run import Run
from mae.train import _resolved, train
from tests.mae.made_runs import lines, steps

pytestmark = pytest.mark.slow

ENGINE = str(Path(__file__).with_name("disturbed_engine.py"))


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("raises", r"rank 0 exited with code 1; its log is .*rank_0.log, and ends:[\s\S]*MemoryError: planted"),
        ("killed", "rank 0 was killed by SIGKILL"),
        ("stands still", "the ranks made no progress for 10 s; its log is .*rank_0.log"),
    ],
)
def test_a_data_thread(tiny, trained, tmp_path, fault, found):
    job = _resolved(tiny)
    made = Run.of(job, tmp_path)
    run_dir = made.directory
    made.write_config()
    with Follower(made, print) as poll, pytest.raises(RanksFailed, match=found):
        run_ranks(
            [ENGINE, str(run_dir), fault, "0"],
            ranks=1,
            log_dir=run_dir / "logs",
            run_dir=run_dir,
            poll=lambda: poll() if steps(run_dir) else object(),  # compiling takes a while
            hang_seconds=10,
        )
    assert not (run_dir / "launch").exists(), "ranks are left"
    assert 0 < max(steps(run_dir)) < 36, "its third epoch is not finished"
    run = train(job, workspace=tmp_path, resume=True)
    assert (lines(run.run_dir), run.digest) == (lines(trained.run_dir), trained.digest)
