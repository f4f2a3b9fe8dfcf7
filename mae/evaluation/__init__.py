"""What a checkpoint is worth: one file per protocol, results and their history. Read protocol.py first.

A protocol of your own is one file as `mae.config.protocols` describes it, in a folder that $MAE_PROTOCOLS names.
Importing this room does not load MindSpore.
"""

from mae.config.protocols import extra_folders
from mae.evaluation.evaluate import Evaluation, evaluate
from mae.evaluation.history import append, read_history

__all__ = ["Evaluation", "append", "evaluate", "read_history"]

__path__ += extra_folders()
