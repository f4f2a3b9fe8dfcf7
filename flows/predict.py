"""Flow mae-predict: predicts images with a checkpoint."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

import tasks.predict
from mae.config.sections import Target
from mae.prediction import Predictions


@flow(name="mae-predict")
def mae_predict(checkpoint: str, images: list[str], out: str, target: Target = "CPU", seed: int = 0) -> Predictions:
    """Predict images and write a table to the folder `out`: reconstructions with a MAE, classes with a classifier.

    `checkpoint` is a published name or a path; `images` are files, folders or http(s) addresses.
    """
    return tasks.predict.predict(checkpoint, images, Path(out), target, seed)
