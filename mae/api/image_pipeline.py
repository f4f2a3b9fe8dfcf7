"""`pipeline(task, model)(images)`: predictions in Python, without a table."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

from PIL import Image

from datasets.base.errors import InputError
from datasets.base.files import PathLike, atomic_write
from mae.model.vit import Encoder
from mae.prediction.images import ImageLike, Source, sources
from mae.prediction.predict import picture_name
from mae.prediction.predictors import Classifier, Reconstructor
from mae.runs.model_file import model_digest
from mae.weights.hub import KNOWN, find_weights
from mae.weights.restore import load_model

TASKS = ("masked_image_modeling", "image_classification")

logger = logging.getLogger(__name__)


def pipeline(
    task: str,
    model: Union[PathLike, Encoder] = "mae_vit_base_p16",
    *,
    seed: int = 0,
    save_dir: PathLike = "output",
) -> ImagePipeline:
    """Return a function from images to predictions.

        pipeline("masked_image_modeling")("sunflower.png")
        pipeline("image_classification", model="workspace/runs/RUN")(["a.jpg", "b.jpg"])

    Args:
        task: masked_image_modeling or image_classification.
        model: published name, checkpoint of any layout, run directory, or a model. For image_classification, the name
            of a pre-trained model means the classifier that was fine-tuned from it.
        seed: seed of the masks. The seed and an image's content determine its mask.
        save_dir: folder for the reconstructions, each of which has its own file name.

    Raises:
        InputError: the task is unknown, or the model cannot do it.
    """
    check_task(task)
    if isinstance(model, Encoder):
        return ImagePipeline(task, model, _digest(model), seed, Path(save_dir))
    path = find_weights(for_task(task, model))
    return ImagePipeline(task, load_model(path), model_digest(path), seed, Path(save_dir))


def check_task(task: str) -> None:
    """Raise InputError if the task is unknown."""
    if task not in TASKS:
        raise InputError("task", expected=f"one of {', '.join(TASKS)}", found=repr(task), todo="name one of them")


def for_task(task: str, model: PathLike) -> PathLike:
    """Return the published name of the weights that can do the task; other names and paths are returned as they are."""
    name = f"{model}_finetuned"
    if task == "image_classification" and name in KNOWN and not Path(model).exists():
        logger.info("%s cannot classify: using %s", model, name)
        return name
    return model


class ImagePipeline:
    """The function that `pipeline` returns."""

    def __init__(self, task: str, model: Encoder, model_digest: str, seed: int, save_dir: Path) -> None:
        self.model_digest, self.seed, self.save_dir = model_digest, seed, save_dir
        kind = Reconstructor if task == "masked_image_modeling" else Classifier
        self.predictor = kind(model, task)

    def __call__(self, images: Union[ImageLike, Sequence[ImageLike]]) -> list[Any]:
        """Predict one image or several: paths, folders, http(s) addresses, arrays uint8 (H, W, 3), Pillow images.

        Returns:
            One entry per image. A MAE's is {"info": path of the saved reconstruction, "data": the same as a Pillow
            image, "loss", "mask_ratio", "true_patch_statistics", "seed"}. A classifier's has the five most probable
            classes as [{"label", "score"}, ...], the most probable first.

        Raises:
            InputError: an image cannot be read.
        """
        several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        return [self._predict(source) for source in sources(images if several else [images])]  # type: ignore[arg-type, list-item]

    def _predict(self, source: Source) -> Any:
        if isinstance(self.predictor, Classifier):
            return [{"label": label, "score": score} for label, score in self.predictor(source.open())]
        result = self.predictor(source.open(), seed=self.seed, digest=source.digest)
        picture, sink = Image.fromarray(result.filled), io.BytesIO()
        picture.save(sink, "PNG")
        path = self.save_dir / picture_name(source.stem, source.digest, self.model_digest, self.seed)
        atomic_write(path, sink.getvalue())
        return {
            "info": str(path),
            "data": picture,
            "loss": result.loss,
            "mask_ratio": result.mask_ratio,
            "true_patch_statistics": result.true_patch_statistics,
            "seed": self.seed,
        }


def _digest(model: Encoder) -> str:
    """Return the SHA-256 of a model's config and weights, so that each model's pictures have their own names."""
    digest = hashlib.sha256(model.config.model_dump_json().encode())
    for parameter in model.get_parameters():
        digest.update(parameter.asnumpy().tobytes())
    return digest.hexdigest()
