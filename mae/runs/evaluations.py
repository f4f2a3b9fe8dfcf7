"""The results in a run's folder evaluations/: one JSON file per protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from pydantic import BaseModel, Field, model_validator

LAST_OLD_VERSION = 2  # up to this version, logistic regression was called `linear`


class Score(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Accuracy of one encoder on the validation split. `top1` and `top5` are shares of `images`, between 0 and 1."""

    encoder: str  # pretrained, finetuned, or a baseline: random, pixels
    top1: float = Field(ge=0, le=1)
    top5: Optional[float] = Field(None, ge=0, le=1)
    images: int = Field(gt=0)
    features: Optional[int] = None  # numbers per image that the classifier saw


class EvaluationFile(BaseModel, extra="forbid", allow_inf_nan=False):
    """The content of evaluations/<protocol>.json, also of earlier versions. Digests are hexadecimal SHA-256 values."""

    protocol: str
    version: int  # of the protocol
    checkpoint: str  # digest of the model file
    records: str  # digest of the records
    settings: dict[str, Any]
    results: list[Score]
    seconds: float = 0.0

    @model_validator(mode="after")
    def _todays_name(self) -> EvaluationFile:
        self.protocol = current_name(self.protocol, self.version)
        return self


def current_name(protocol: str, version: int) -> str:
    """Return today's name of a protocol in a result of any age."""
    return "logistic" if protocol == "linear" and version <= LAST_OLD_VERSION else protocol


def read_evaluation(path: Path) -> EvaluationFile:
    """Read a result file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or not a result.
    """
    return EvaluationFile.model_validate_json(path.read_text(), strict=True)
