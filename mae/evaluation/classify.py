"""Top-1 and top-5 accuracy of a classifier on the validation split, every image counted once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.base.errors import InputError
from datasets.records import load_index
from mae.config.sections import Config, Section
from mae.evaluation.protocol import Score, Subject

VERSION = 2

logger = logging.getLogger(__name__)


class Settings(Section):
    """A classifier has nothing to set."""


def measure(subject: Subject, settings: Settings) -> Iterator[Score]:  # noqa: ARG001 (every protocol takes settings)
    """Yield the score of the checkpoint's classifier."""
    yield classify(subject.model, subject.records, subject.config)


def classify(model: Path, records: Path, config: Config) -> Score:
    """Return the accuracy of a classifier on the validation split of `records`.

    Raises:
        InputError: the classifier was trained for other classes.
    """
    from mindspore import Tensor

    from mae.evaluation.features import in_fixed_batches, split_features
    from mae.model.forward import Classify
    from mae.weights.restore import load_classifier

    classifier = load_classifier(model)
    card, expected = classifier.card, load_index(records).classes
    if len(card.labels) != len(expected) or card.classes not in (None, expected):
        todo = "evaluate it on the data it was trained on"
        raise InputError(model, expected=f"the classes {expected}", found=str(card.labels), todo=todo)
    if card.classes is None:
        logger.warning("%s does not name its classes: assuming the classes of the data, in their order", model)
    logits = Classify(classifier)
    logits.set_train(False)
    compute = in_fixed_batches(lambda images: logits(Tensor(images)).asnumpy())
    found = split_features(records, "val", classifier.config, compute, workers=config.data.workers)
    hits = np.argsort(-found.values, axis=1) == found.labels[:, None]
    return Score(
        encoder="finetuned",
        top1=float(hits[:, 0].mean()),
        top5=float(hits[:, :5].any(1).mean()) if len(expected) > 5 else None,
        images=len(hits),
        features=classifier.config.embed_dim,
    )
