"""The types that protocols share: what is measured, features of a split, and the result for one encoder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mae.config.sections import Config
from mae.runs.evaluations import Score

__all__ = ["Features", "Score", "Subject"]


class Subject(NamedTuple):
    """A checkpoint, the data it is measured on, and the job that it belongs to."""

    model: Path  # model file
    records: Path  # directory that `mae data shard` wrote
    config: Config  # device, seed, data workers, and the recipes of protocols that train
    workspace: Path  # receives the runs of protocols that train


class Features(NamedTuple):
    """The features of images."""

    values: np.ndarray  # (N, F) float32
    labels: np.ndarray  # (N,) int32
