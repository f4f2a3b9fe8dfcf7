"""The published linear probe: batch normalisation and a linear layer on the frozen class token, trained by LARS.

He et al. 2022, table 10. Its result is the one to compare with published linear-probe accuracies.
"""

from __future__ import annotations

from mae.config.sections import LinearConfig

VERSION = 3  # up to version 2 this name stood for `logistic`
ENCODER = "pretrained"
Settings = LinearConfig
