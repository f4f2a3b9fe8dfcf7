"""The engine with a fault in some ranks: RUN_DIR FAULT RANK..."""

import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path

from datasets.batches import batches
from mae.device import shared_mean
from mae.launch.ranks import rank_main
from mae.training import engine

SECONDS = 0.05  # that a slow rank is late at each step
CALLS = 100  # of the data threads before one has the fault: in the third epoch of the tests' tiny job

run_dir, fault, ranks = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]


def late_batches(job, epochs, rank, *, start, found=engine.rank_batches):
    for batch in found(job, epochs, rank, start=start):
        time.sleep(SECONDS)
        yield batch


def late_mean(self, terms, number, found=shared_mean.SharedMean.__call__):
    time.sleep(SECONDS)  # as if the gradients had taken longer
    return found(self, terms, number)


calls = itertools.count(1)


def fill(batch, rows, part, view, found=batches._fill):
    if next(calls) == CALLS:
        if fault == "raises":
            raise MemoryError("planted")
        if fault == "killed":
            os.kill(threading.get_native_id(), signal.SIGKILL)
        time.sleep(3600)  # stands still
    found(batch, rows, part, view)


if os.environ["RANK_ID"] in ranks:
    if fault == "late batches":
        engine.rank_batches = late_batches
    elif fault == "slow steps":
        shared_mean.SharedMean.__call__ = late_mean
    else:
        batches._fill = fill
rank_main(lambda: engine.main(str(run_dir)))
