"""What the ranks of an evaluation's test call."""

from __future__ import annotations

from datasets.base.digests import value_digest
from mae.device.context import setup
from mae.evaluation.protocol import Subject


def features_digest(subject: Subject, ranks: int) -> dict[str, str]:
    """Return the digests of the encoder's features and of the labels of each split, in rank 0."""
    from mae.evaluation.features import encoder_features, shared_features
    from mae.weights.restore import load_encoder

    setup("CPU", ranks=1)
    model = load_encoder(subject.model)
    compute, digests = encoder_features(model, "mean"), {}
    for split in ("train", "val"):
        found = shared_features(subject, split, model.config, compute, ranks)
        if found is not None:
            digests |= {split: value_digest([found.values.tobytes().hex(), found.labels.tolist()])}
    return digests
