"""Measures the encoder between epochs of its pre-training, by protocols on frozen features, into metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from mindspore import Tensor

from mae.config.protocols import protocols
from mae.config.sections import PretrainConfig
from mae.evaluation.features import Features, encoder_features, split_features
from mae.evaluation.protocol import protocol_settings
from mae.model.mae import MaskedAutoencoder
from mae.runs.run import Run
from mae.training.metrics import Metrics


class Probe:
    """Evaluates in rank 0's process. The others wait in their next all-reduce, on Ascend for half an hour at most.

    The features come from a copy of the encoder with a graph of its own, so the training is not affected. Records are
    stored in shuffled order: the first `eval_images` of a split are a random sample of it, the same each time.

    Args:
        model: the model in training.
    """

    def __init__(self, run: Run, model: MaskedAutoencoder, metrics: Metrics) -> None:
        recipe = run.config.recipe
        assert isinstance(recipe, PretrainConfig)
        self.run, self.recipe, self.model, self.metrics = run, recipe, model, metrics
        self.copy = MaskedAutoencoder(run.config.model)
        self.settings = {name: protocol_settings(name, run.config) for name in recipe.eval_protocols}
        pools = {getattr(settings, "pool", "cls") for settings in self.settings.values()}
        self.encoders = {pool: encoder_features(self.copy, pool) for pool in sorted(pools)}
        self.done = {(line["step"], line["protocol"]) for line in run.measurements()}

    def __call__(self, step: int, epoch: int) -> None:
        """Evaluate after a step that ends an epoch, by the protocols whose results are not in the log yet."""
        todo = [name for name in self.recipe.eval_protocols if (step, name) not in self.done]
        if todo:
            with self.metrics.apart():
                self._measure(todo, step, epoch)

    def _measure(self, names: Sequence[str], step: int, epoch: int) -> None:
        began = time.monotonic()
        for to, now in zip(self.copy.get_parameters(), self.model.get_parameters()):
            to.set_data(Tensor(now.asnumpy().copy()))
        known, features = protocols(), {}
        for name in names:
            pool = getattr(self.settings[name], "pool", "cls")
            if pool not in features:
                features[pool] = [self._features(split, pool) for split in ("train", "val")]
            train, val = features[pool]
            correct = known[name].predict(train, val, self.settings[name]) == val.labels
            took, began = time.monotonic() - began, time.monotonic()
            self.metrics.write_evaluation(
                step,
                epoch=float(epoch),
                protocol=name,
                top1=float(correct.mean()),
                images=len(correct),
                train_images=len(train.labels),
                evaluation_seconds=round(took, 2),
            )

    def _features(self, split: str, pool: str) -> Features:
        config = self.run.config
        workers, limit = config.data.workers, self.recipe.eval_images

        def compute(images: np.ndarray) -> np.ndarray:
            self.metrics.alive()
            return self.encoders[pool](images)

        return split_features(self.run.records, split, config.model, compute, workers=workers, limit=limit)
