"""Means through shared memory, between real processes, beside MindSpore's own all-reduce and NumPy."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from mindspore import Tensor, nn

from mae.device import shared_mean
from mae.device.context import all_mean, collective_mean, setup
from mae.device.shared_mean import SharedMean
from mae.launch.ranks import rank_main, run_ranks

SIZES = (5, 1, 2, 1_000_003, 7, 3_000_000, 5)  # grows and shrinks


def terms(rank, size):
    return np.random.default_rng([rank, size]).normal(size=size).astype(np.float32)


def averaged(rank, ranks, folder, answers):
    """All sizes, thirty times over; each mean is read late, while others may be at the next one."""
    mean, wrong = SharedMean(rank, ranks, folder), 0
    expected = {size: np.add.reduce([terms(r, size) for r in range(ranks)]) / np.float32(ranks) for size in SIZES}
    for number in range(30):
        for size in SIZES:
            found = mean(terms(rank, size), number)
            time.sleep(0.001 * (rank == number % ranks))
            wrong += not np.array_equal(found, expected[size])
    answers.put((rank, wrong))


def started(target, ranks, folder):
    """Processes that run target(rank, ranks, folder, answers)."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [context.Process(target=target, args=(rank, ranks, folder, answers)) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes, answers


@pytest.mark.parametrize("ranks", [2, 3])
def test_means_are_those_of_numpy(tmp_path, ranks):
    processes, answers = started(averaged, ranks, tmp_path)
    assert sorted(answers.get(timeout=120) for _ in processes) == [(rank, 0) for rank in range(ranks)]
    assert [path.name for path in tmp_path.iterdir()] == [shared_mean.MEETING]


class Both(nn.Cell):
    """Two means of ours and MindSpore's of the same, in one graph."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.reference = all_mean(0), all_mean(300), collective_mean()

    def construct(self, x):
        return self.first(x) * 1.0, self.second(x * 3.0), self.reference(x), self.reference(x * 3.0)


def compare():
    """What a rank of the test below does."""
    rank, both = setup("CPU", ranks=2), Both()
    for size in (1, 1_000_003, 40):
        for seed in range(3):
            x = Tensor(np.random.default_rng([rank, seed]).normal(size=size).astype(np.float32))
            found = [y.asnumpy() for y in both(x)]
            np.testing.assert_array_equal(found[0], found[2])
            np.testing.assert_array_equal(found[1], found[3])
            assert np.abs(found[0] - x.asnumpy()).min() > 0
    print("equal to MindSpore's")


def test_bits_are_those_of_mindspore(tmp_path):
    command = ["-m", "tests.mae.device.test_shared_mean"]
    run_ranks(command, ranks=2, log_dir=tmp_path / "logs", run_dir=tmp_path)
    for rank in range(2):
        assert "equal to MindSpore's" in (tmp_path / f"logs/rank_{rank}.log").read_text()


def astray(rank, ranks, folder, answers):
    try:
        SharedMean(rank, ranks, folder)(np.zeros(4, np.float32), number=rank)
    except RuntimeError as error:
        answers.put(str(error))


def test_ranks_at_different_means_are_an_error(tmp_path):
    processes, answers = started(astray, 2, tmp_path)
    assert sorted(answers.get(timeout=60)[:19] for _ in processes) == ["rank 0 is at mean 0", "rank 1 is at mean 1"]


def left_alone(rank, ranks, folder, answers):
    shared_mean.LAUNCHER_SECONDS = 0
    mean = SharedMean(rank, ranks, folder)
    mean(np.zeros(4, np.float32))
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        mean(np.zeros(4, np.float32))
    except RuntimeError as error:
        answers.put(str(error))


def test_a_killed_rank_leaves_none_waiting(tmp_path):
    _, answers = started(left_alone, 2, tmp_path)
    assert "rank 0 is at mean 0" in answers.get(timeout=60)


if __name__ == "__main__":
    rank_main(compare)
