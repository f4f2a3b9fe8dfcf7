"""The description of a model that is stored with its weights."""

from __future__ import annotations

from typing import Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field

from mae.config.sections import ModelConfig


class Conversion(BaseModel):
    """The source of converted weights, and what the conversion changed."""

    model_config = ConfigDict(extra="forbid")

    source: str  # file name
    sha256: str
    layout: str
    settings: dict[str, Any] = {}  # given by the caller
    assumed: list[str] = []  # given neither by the file nor by the caller
    changed: list[str] = []  # tensors whose values or types differ from the file's
    dropped: list[str] = []  # tensors of the file that were not taken
    earlier: Optional[Conversion] = None  # the conversion that the source itself is a result of


class ModelCard(BaseModel):
    """The description of a model in the header of its safetensors file.

    An encoder is a vision transformer up to its final norm, without decoder and head.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    kind: Literal["mae", "classifier", "encoder"]
    model: ModelConfig
    classes: Optional[list[str]] = None  # of a classifier, in label order; none if the file does not name them
    mask_ratio: Optional[float] = Field(None, gt=0, lt=1)  # of a MAE
    decoder: Optional[Literal["random"]] = None  # of a MAE made from an encoder: its decoder is not trained
    conversion: Optional[Conversion] = None  # none: trained here

    @property
    def labels(self) -> list[str]:
        """Names of the classes, or their numbers if they have no names."""
        return self.classes or [str(number) for number in range(self.model.num_classes or 0)]
