"""The description of a model that is stored with its weights."""

from __future__ import annotations

from typing import Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field

from mae.config.sections import ModelConfig


class Conversion(BaseModel):
    """Where converted weights come from and what happened to them on the way."""

    model_config = ConfigDict(extra="forbid")

    source: str  # file name
    sha256: str
    layout: str
    settings: dict[str, Any] = {}  # what the caller told
    assumed: list[str] = []  # what neither the file nor the caller said
    changed: list[str] = []  # tensors with other values or types than in the file
    dropped: list[str] = []  # what the file holds besides
    earlier: Optional[Conversion] = None  # that the source had gone through itself


class ModelCard(BaseModel):
    """What a model file says of itself, in the header of the safetensors file.

    An encoder is a vision transformer up to its final norm, without decoder and head.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    kind: Literal["mae", "classifier", "encoder"]
    model: ModelConfig
    classes: Optional[list[str]] = None  # of a classifier, in label order; none where the file names none
    mask_ratio: Optional[float] = Field(None, gt=0, lt=1)  # of a MAE
    decoder: Optional[Literal["random"]] = None  # of a MAE: not trained, put on an encoder
    conversion: Optional[Conversion] = None  # none: trained here

    @property
    def labels(self) -> list[str]:
        """Names of the classes, or their numbers where nobody named them."""
        return self.classes or [str(number) for number in range(self.model.num_classes or 0)]
