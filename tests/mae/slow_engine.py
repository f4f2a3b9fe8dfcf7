"""The engine with ranks whose batches come late: RUN_DIR SECONDS RANK..."""

import sys
import time
from pathlib import Path

from mae import engine
from mae.launch import rank_main

seconds, slow = float(sys.argv[2]), [int(rank) for rank in sys.argv[3:]]
rank_batches = engine.rank_batches


def late(job, config, epoch, rank, *, start):
    for batch in rank_batches(job, config, epoch, rank, start=start):
        if rank in slow:
            time.sleep(seconds)
        yield batch


engine.rank_batches = late
rank_main(lambda: engine.run(Path(sys.argv[1])))
