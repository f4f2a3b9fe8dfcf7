"""mae-predict: a checkpoint's predictions for images."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

import tasks.predict
from mae.config.sections import Target
from mae.prediction.predict import Predictions


@flow(name="mae-predict")
def mae_predict(checkpoint: str, images: list[str], out: str, target: Target = "CPU", seed: int = 0) -> Predictions:
    """Predict images into the folder `out`: reconstructions for a MAE, else classes.

    `checkpoint` is a known name or a path; `images` are files, folders or http(s) addresses.
    """
    return tasks.predict.predict(checkpoint, images, Path(out), target, seed)
