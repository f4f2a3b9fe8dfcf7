"""Inside a rank: the loop, the compiled step, optimisers, schedule and metrics. Read engine.py first.

`python -m mae.training.engine` is one rank; mae/train.py starts the ranks. `replay` runs a failed step again.
"""

from mae.training.failed_step import Replay, replay

__all__ = ["Replay", "replay"]
