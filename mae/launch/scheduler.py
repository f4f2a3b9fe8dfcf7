"""The scheduler process of a job on CPUs: it introduces the ranks to each other. It needs only MindSpore."""

import os
import signal
import sys

if __name__ == "__main__":
    print("scheduler of", os.environ["MS_WORKER_NUM"], "ranks, process", os.getpid(), flush=True)
    import mindspore as ms
    from mindspore import communication

    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")  # MindSpore 2.0 refuses the other mode
    communication.init()  # returns on MindSpore 2.0; on newer releases it serves until the ranks have left
    sys.stdout.flush()
    while True:
        signal.pause()
