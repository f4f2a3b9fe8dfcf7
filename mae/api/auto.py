"""Models and their sizes by name, file or folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from datasets.base.errors import InputError
from datasets.base.files import PathLike
from mae.config.load import load_config
from mae.config.sections import ModelConfig
from mae.weights import hub

if TYPE_CHECKING:
    from mae.model.vit import Encoder


class AutoConfig:
    """Sizes of a model."""

    @staticmethod
    def from_pretrained(name_or_path: PathLike) -> ModelConfig:
        """Sizes of a known name (nothing is downloaded), of a checkpoint of any layout, or in a YAML job config.

        Raises:
            InputError: the name is unknown, or the file is none of these.
        """
        if _is_name(name_or_path):
            return hub.known(str(name_or_path)).model
        if Path(name_or_path).suffix in (".yaml", ".yml"):
            return load_config(name_or_path).model
        from mae.weights.convert import read

        return read(weights(name_or_path)).card.model


class AutoModel:
    """MindSpore models: MaskedAutoencoder, VisionTransformer, or the encoder alone."""

    @staticmethod
    def from_pretrained(name_or_path: PathLike, **settings: Any) -> Encoder:
        """The model in a checkpoint, with its weights; `model.card` tells its kind, classes and origin.

        Args:
            name_or_path: a known name (downloaded once), a file of any layout that `mae convert` reads, a Hugging Face
                folder, a checkpoint directory or a run directory.
            settings: fields of ModelConfig that the file does not tell or that shall differ, e.g. image_size=384.

        Raises:
            InputError: there is no such checkpoint, or it does not fit.
        """
        from mae.weights.restore import load_model

        return load_model(weights(name_or_path), settings=settings or None)

    @staticmethod
    def from_config(config: ModelConfig) -> Encoder:
        """A model at its random initialisation: a classifier where the config has `num_classes`, else a MAE."""
        from mae.model.mae import MaskedAutoencoder
        from mae.model.vit import VisionTransformer

        if not isinstance(config, ModelConfig):
            todo = "make one by AutoConfig.from_pretrained or mae.config.sections.ModelConfig"
            raise InputError("config", expected="a ModelConfig", found=type(config).__name__, todo=todo)
        return VisionTransformer(config, config.num_classes) if config.num_classes else MaskedAutoencoder(config)


def weights(name_or_path: PathLike) -> Path:
    """The file or folder of weights that a name or path means; a known name is downloaded at its first use.

    Raises:
        InputError: it is neither.
    """
    if _is_name(name_or_path):
        return hub.fetch(str(name_or_path))
    from mae.runs.model_file import model_file

    return model_file(Path(name_or_path))


def _is_name(name_or_path: Union[str, Path]) -> bool:
    """Whether this can only be a name: a bare word that is no file or folder here."""
    text = str(name_or_path)
    return "/" not in text and not Path(text).suffix and not Path(text).exists()
