"""Fine-tuning: the whole encoder is trained further as a classifier by the config's recipe, then classifies."""

from __future__ import annotations

from mae.config.sections import FinetuneConfig

VERSION = 2
ENCODER = "finetuned"
Settings = FinetuneConfig
