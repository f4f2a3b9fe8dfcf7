"""Means through shared memory between real processes, compared with MindSpore's own all-reduce and with NumPy."""

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mindspore import Tensor, nn

from mae.device import shared_mean
from mae.device.context import all_mean, collective_mean, setup, waited_for_ranks
from mae.launch.ranks import _free_port, rank_main, run_ranks
from tests.mae.device.mean_ranks import astray, averaged, left_alone


def started(target, ranks, folder):
    """Start processes that run target(rank, ranks, folder, answers)."""
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
    """Two of our means and MindSpore's means of the same tensors, in one graph."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.reference = all_mean(0), all_mean(300), collective_mean()

    def construct(self, x):
        return self.first(x) * 1.0, self.second(x * 3.0), self.reference(x), self.reference(x * 3.0)


def compare():
    """Compare both means on a rank of the test below."""
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
    assert not (tmp_path / "launch").exists()


def over_servers():
    """Average as one of two ranks on two servers."""
    rank = setup("CPU", ranks=2)
    terms = [np.random.default_rng(r).normal(size=1000).astype(np.float32) for r in range(2)]
    found = all_mean(0)(Tensor(terms[rank])).asnumpy()
    np.testing.assert_array_equal(found, (terms[0] + terms[1]) / np.float32(2))
    print(f"rank {rank} is equal to NumPy's, and waited {waited_for_ranks()}")


@pytest.mark.slow
def test_ranks_of_two_servers_average_without_shared_memory(tmp_path):
    """Each of two launchers starts a rank, as two servers do."""
    command, port = ["-m", "tests.mae.device.test_shared_mean", "over_servers"], _free_port()
    with ThreadPoolExecutor() as pool:
        for first in range(2):
            pool.submit(
                run_ranks,
                command,
                ranks=1,
                first=first,
                total=2,
                scheduler=f"127.0.0.1:{port}",
                log_dir=tmp_path / "logs",
                run_dir=tmp_path,
            )
    for rank in range(2):
        assert f"rank {rank} is equal to NumPy's, and waited None" in (tmp_path / f"logs/rank_{rank}.log").read_text()


def test_ranks_at_different_means_are_an_error(tmp_path):
    processes, answers = started(astray, 2, tmp_path)
    assert sorted(answers.get(timeout=60)[:19] for _ in processes) == ["rank 0 is at mean 0", "rank 1 is at mean 1"]


def test_a_killed_rank_leaves_none_waiting(tmp_path):
    _, answers = started(left_alone, 2, tmp_path)
    assert "rank 0 is at mean 0" in answers.get(timeout=60)


if __name__ == "__main__":
    rank_main(over_servers if sys.argv[1:] else compare)
