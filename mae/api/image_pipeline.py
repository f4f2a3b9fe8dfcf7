"""`pipeline(task, model)(images)`: predictions in Python, without a table."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

from mindspore import nn
from PIL import Image

from datasets.base.errors import InputError
from datasets.base.files import PathLike, atomic_write
from mae.api.auto import weights
from mae.model.mae import MaskedAutoencoder
from mae.model.vit import Encoder, VisionTransformer
from mae.prediction.images import ImageLike, Source, sources
from mae.prediction.predict import picture_name
from mae.prediction.predictors import Classifier, Reconstructor
from mae.runs.model_file import model_digest
from mae.weights import hub
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
    """A function from images to predictions.

    Args:
        task: masked_image_modeling or image_classification.
        model: known name, checkpoint of any layout, run directory, or a model. For image_classification the name of a
            pre-trained model stands for the classifier that was fine-tuned from it.
        seed: of the masks; an image's mask is a function of the seed and the image.
        save_dir: receives the reconstructions, each under a name of its own.

    Raises:
        InputError: the task is unknown, or the model cannot do it.
    """
    if task not in TASKS:
        raise InputError("task", expected=f"one of {', '.join(TASKS)}", found=repr(task), todo="name one of them")
    if isinstance(model, Encoder):
        return ImagePipeline(task, model, _digest(model), seed, Path(save_dir))
    path = weights(for_task(task, model))
    return ImagePipeline(task, load_model(path), model_digest(path), seed, Path(save_dir))


def for_task(task: str, model: PathLike) -> PathLike:
    """The known name whose weights can do the task; what is no name or can, as it is."""
    name = f"{model}_finetuned"
    if task == "image_classification" and name in hub.KNOWN and not Path(model).exists():
        logger.info("%s cannot classify: using %s", model, name)
        return name
    return model


class ImagePipeline:
    """What `pipeline` returns."""

    def __init__(self, task: str, model: Encoder, model_digest: str, seed: int, save_dir: Path) -> None:
        self.task, self.model, self.model_digest, self.seed, self.save_dir = task, model, model_digest, seed, save_dir
        card = getattr(model, "card", None)
        if task == "masked_image_modeling":
            _require(model, MaskedAutoencoder, "a MAE with its decoder", task)
            self.reconstruct = Reconstructor(model, getattr(card, "mask_ratio", None) or 0.75)
        else:
            _require(model, VisionTransformer, "a classifier", task)
            self.classify = Classifier(model, getattr(card, "labels", None))

    def __call__(self, images: Union[ImageLike, Sequence[ImageLike]]) -> list[Any]:
        """Predict one image or several: paths, folders, http(s) addresses, arrays (H, W, 3) uint8, Pillow images.

        Returns:
            for each image, of a MAE {"info": path of the saved reconstruction, "data": it as a Pillow image,
            "loss", "mask_ratio", "true_patch_statistics", "seed"}; of a classifier the five likeliest classes as
            [{"label", "score"}, ...], the likeliest first.

        Raises:
            InputError: an image cannot be read.
        """
        several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        found = sources(images if several else [images])  # type: ignore[arg-type, list-item]
        if self.task == "masked_image_modeling":
            return [self._reconstruction(source) for source in found]
        return [[{"label": label, "score": p} for label, p in self.classify(source.open())] for source in found]

    def _reconstruction(self, source: Source) -> dict[str, Any]:
        result = self.reconstruct(source.open(), seed=self.seed, digest=source.digest)
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


def _require(model: Encoder, kind: type, what: str, task: str) -> None:
    headless = isinstance(model, VisionTransformer) and isinstance(model.head, nn.Identity)
    if not isinstance(model, kind) or headless:
        found = "an encoder without head or decoder" if headless else f"a {type(model).__name__}"
        raise InputError(task, expected=what, found=found, todo="name another model")


def _digest(model: Encoder) -> str:
    """SHA-256 of a model's config and weights: its pictures take no other model's names."""
    digest = hashlib.sha256(model.config.model_dump_json().encode())
    for parameter in model.get_parameters():
        digest.update(parameter.asnumpy().tobytes())
    return digest.hexdigest()
