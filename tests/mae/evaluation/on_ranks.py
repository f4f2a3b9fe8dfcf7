"""What the ranks of an evaluation's test call."""

from __future__ import annotations

from mae.device.context import setup
from mae.evaluation.protocol import Subject


def features(subject: Subject, ranks: int) -> dict[str, tuple[list[list[float]], list[int]]]:
    """Return the encoder's features and the labels of each split, in rank 0."""
    from mae.evaluation.features import encoder_features, shared_features
    from mae.weights.restore import load_encoder

    setup("CPU", ranks=1)
    model = load_encoder(subject.model)
    compute, values = encoder_features(model, "mean"), {}
    for split in ("train", "val"):
        found = shared_features(subject, split, model.config, compute, ranks)
        if found is not None:
            values[split] = (found.values.tolist(), found.labels.tolist())
    return values
