"""Multinomial logistic regression on standardised frozen features, compared with random weights and raw pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from mae.config.sections import Section
from mae.evaluation.protocol import Features

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

VERSION = 2
MAX_ITERATIONS = 1000  # scikit-learn warns where they are not enough


class Settings(Section):
    """Logistic regression on frozen features."""

    pool: Literal["cls", "mean"] = Field("cls", description="feature of an image: class token, or mean of the patches")
    l2: list[float] = Field(
        [1e-4, 1e-3, 1e-2, 1e-1],
        min_length=1,
        description="penalties l2 / 2 * |W|^2, added to the mean loss; of several, each encoder gets the one that is "
        "best on a held-out fifth of the training split",
    )
    tol: float = Field(
        1e-3, gt=0, description="the fit has converged when the largest gradient component is below this"
    )


def predict(train: Features, val: Features, settings: Settings) -> np.ndarray:
    """Fit a classifier on the training split and return the labels (N,) it gives to the validation split."""
    mean, std = train.values.mean(0), train.values.std(0) + 1e-6
    values, labels = (train.values - mean) / std, train.labels
    best = settings.l2[0]
    if len(settings.l2) > 1:
        held_out = np.arange(len(labels)) % 5 == 0  # records are stored in shuffled order
        accuracy = [
            _fit(values[~held_out], labels[~held_out], l2, settings.tol).score(values[held_out], labels[held_out])
            for l2 in settings.l2
        ]
        best = settings.l2[int(np.argmax(accuracy))]
    return _fit(values, labels, best, settings.tol).predict((val.values - mean) / std)


def _fit(values: np.ndarray, labels: np.ndarray, l2: float, tol: float) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / (l2 * len(labels)), tol=tol, max_iter=MAX_ITERATIONS).fit(values, labels)
