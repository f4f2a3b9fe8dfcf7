"""`AutoConfig` and `AutoModel`: models and their sizes by published name, file or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets.base.errors import InputError
from datasets.base.files import PathLike
from mae.config.load import load_config
from mae.config.sections import ModelConfig
from mae.model.mae import MaskedAutoencoder
from mae.model.vit import Encoder, VisionTransformer
from mae.weights import hub
from mae.weights.convert import read
from mae.weights.restore import load_model


class AutoConfig:
    """Sizes of models."""

    @staticmethod
    def from_pretrained(name_or_path: PathLike) -> ModelConfig:
        """Return the sizes of a published model (without download), of a checkpoint, or in a YAML job config.

        Raises:
            InputError: the name is unknown, or the file is none of these.
        """
        if hub.is_name(name_or_path):
            return hub.known(str(name_or_path)).model
        if Path(name_or_path).suffix in (".yaml", ".yml"):
            return load_config(name_or_path).model
        return read(hub.find_weights(name_or_path)).card.model


class AutoModel:
    """MindSpore models: a MaskedAutoencoder, or a VisionTransformer with or without a head."""

    @staticmethod
    def from_pretrained(name_or_path: PathLike, **settings: Any) -> Encoder:
        """Return the model in a checkpoint, with its weights. `model.card` has its kind, classes and origin.

            AutoModel.from_pretrained("mae_vit_base_p16")
            AutoModel.from_pretrained("facebook/vit-mae-base/", image_size=384)

        Args:
            name_or_path: a published name (downloaded once), a file of any layout that `mae convert` reads, a Hugging
                Face folder, a checkpoint directory or a run directory.
            settings: fields of ModelConfig that the file does not contain or that have to differ from it.

        Raises:
            InputError: there is no such checkpoint, or it does not fit the settings.
        """
        return load_model(hub.find_weights(name_or_path), settings=settings or None)

    @staticmethod
    def from_config(config: ModelConfig) -> Encoder:
        """Return a model with random weights: a classifier if the config has `num_classes`, else a MAE."""
        if not isinstance(config, ModelConfig):
            todo = "make one with AutoConfig.from_pretrained or mae.config.sections.ModelConfig"
            raise InputError("config", expected="a ModelConfig", found=type(config).__name__, todo=todo)
        return VisionTransformer(config, config.num_classes) if config.num_classes else MaskedAutoencoder(config)
