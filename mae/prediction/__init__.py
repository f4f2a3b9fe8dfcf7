"""Images to classes or reconstructions. Read predict.py first, then predictors.py.

Importing this room does not load MindSpore.
"""

from mae.prediction.images import ImageLike, Source, load_image, sources
from mae.prediction.predict import Predictions, predict

__all__ = ["ImageLike", "Predictions", "Source", "load_image", "predict", "sources"]
