"""Functions that tests run as the ranks of a shared mean. This module does not import MindSpore, which is slow."""

import os
import signal
import time

import numpy as np

from mae.device import shared_mean
from mae.device.shared_mean import SharedMean

SIZES = (5, 1, 2, 1_000_003, 7, 3_000_000, 5)  # grows and shrinks


def terms(rank, size):
    return np.random.default_rng([rank, size]).normal(size=size).astype(np.float32)


def averaged(rank, ranks, folder, answers):
    """Average each size 30 times. Each mean is read late, when other ranks may already compute the next one."""
    mean, wrong = SharedMean(rank, ranks, folder), 0
    sent = {size: [terms(r, size) for r in range(ranks)] for size in SIZES}
    expected = {size: np.add.reduce(parts) / np.float32(ranks) for size, parts in sent.items()}
    for number in range(30):
        for size in SIZES:
            found = mean(sent[size][rank], number)
            time.sleep(0.001 * (rank == number % ranks))
            wrong += not np.array_equal(found, expected[size])
    answers.put((rank, wrong))


def astray(rank, ranks, folder, answers):
    try:
        SharedMean(rank, ranks, folder)(np.zeros(4, np.float32), number=rank)
    except RuntimeError as error:
        answers.put(str(error))


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
