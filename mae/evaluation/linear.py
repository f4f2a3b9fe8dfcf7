"""The published linear probe: batch normalisation and a linear layer on the frozen class token, trained by LARS.

He et al. 2022, table 10. Its result is the one to compare with published linear-probe accuracies.
"""

from __future__ import annotations

from collections.abc import Iterator

from mae.config.sections import LinearConfig
from mae.evaluation.finetune import trained
from mae.evaluation.protocol import Score, Subject

VERSION = 3  # up to version 2 this name stood for `logistic`
Settings = LinearConfig


def measure(subject: Subject, settings: LinearConfig) -> Iterator[Score]:
    """Yield the score of the probe; its run is <config's name>-linear in the workspace."""
    yield trained(subject, "linear", settings).model_copy(update={"encoder": "pretrained"})
