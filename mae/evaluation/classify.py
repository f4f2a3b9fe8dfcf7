"""Top-1 and top-5 accuracy of a classifier on the validation split, every image counted once."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from datasets.base.errors import InputError
from datasets.records import load_index
from mae.config.sections import Section
from mae.evaluation.protocol import Score, Subject

VERSION = 2
ENCODER = "finetuned"

logger = logging.getLogger(__name__)


class Settings(Section):
    """A classifier has nothing to set."""


def classify(subject: Subject, encoder: str, ranks: int) -> Iterator[Score]:
    """Yield the score of the checkpoint's classifier under the name `encoder`, in rank 0.

    Raises:
        InputError: the classifier was trained for other classes.
    """
    from mindspore import Tensor

    from mae.evaluation.features import in_fixed_batches, shared_features
    from mae.model.forward import Classify
    from mae.weights.restore import load_classifier

    classifier = load_classifier(subject.model)
    card, expected = classifier.card, load_index(subject.records).classes
    if len(card.labels) != len(expected) or card.classes not in (None, expected):
        todo = "evaluate it on the data it was trained on"
        raise InputError(subject.model, expected=f"the classes {expected}", found=str(card.labels), todo=todo)
    if card.classes is None:
        logger.warning("%s does not name its classes: assuming the data's, in their order", subject.model)
    logits = Classify(classifier)
    logits.set_train(False)
    compute = in_fixed_batches(lambda images: logits(Tensor(images)).asnumpy())
    found = shared_features(subject, "val", classifier.config, compute, ranks)
    if found is not None:
        hits = np.argsort(-found.values, axis=1) == found.labels[:, None]
        yield Score(
            encoder=encoder,
            top1=float(hits[:, 0].mean()),
            top5=float(hits[:, :5].any(1).mean()) if len(expected) > 5 else None,
            images=len(hits),
            features=classifier.config.embed_dim,
        )
