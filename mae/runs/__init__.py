"""What a run is and what its folder holds. Read run.py first, then checkpoint.py and log.py.

`Run` is opened once from a directory or made from a config, and passed to training, health, evaluation and report.
"""

from mae.runs.evaluations import EvaluationFile, Score
from mae.runs.model_file import model_file, run_directory
from mae.runs.run import Run, Training

__all__ = ["EvaluationFile", "Run", "Score", "Training", "model_file", "run_directory"]
