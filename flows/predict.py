"""mae-predict: a checkpoint's predictions for images."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

import tasks.predict
from mae.predict import Predictions


@flow(name="mae-predict")
def mae_predict(checkpoint: str, images: list[str], out: str, target: str = "CPU", seed: int = 0) -> Predictions:
    """Predict images, or all images of folders, into the folder `out`: reconstructions for a MAE, else classes."""
    return tasks.predict.predict(Path(checkpoint), [Path(image) for image in images], Path(out), target, seed)
