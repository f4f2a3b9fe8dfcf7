"""Nearest neighbours by cosine similarity on frozen features, compared with random weights and raw pixels."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from mae.config.sections import Section
from mae.evaluation.protocol import Features

VERSION = 2


class Settings(Section):
    """Majority vote of the nearest training images."""

    pool: Literal["cls", "mean"] = Field("cls", description="feature of an image: class token, or mean of the patches")
    neighbours: int = Field(10, gt=0, description="training images that vote")


def predict(train: Features, val: Features, settings: Settings) -> np.ndarray:
    """Return the labels (N,) that the nearest images of the training split give to the validation split."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(min(settings.neighbours, len(train.labels)))
    return classifier.fit(_unit(train.values), train.labels).predict(_unit(val.values))


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)
