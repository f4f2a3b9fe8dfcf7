"""The types that protocols share: what is measured, features of a split, and the result for one encoder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.base.errors import InputError
from mae.config.protocols import protocols
from mae.config.sections import Config, Section, TrainingSection
from mae.runs.evaluations import Score

__all__ = ["Features", "Score", "Subject", "protocol_settings"]


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


def protocol_settings(protocol: str, config: Config) -> Section:
    """Return the config's section of a protocol, or its defaults; a recipe that trains has to be in the config.

    Raises:
        InputError: the protocol trains and the config has no section for it.
    """
    kind, found = protocols()[protocol].Settings, config.section(protocol)
    if found is None and issubclass(kind, TrainingSection):
        raise InputError("config", expected=f"a section `{protocol}:`", found="none", todo="add it")
    return found if found is not None else kind()
