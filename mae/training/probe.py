"""What the encoder is worth while it is being pre-trained: kNN or a linear probe between epochs, into metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mindspore import Tensor

from mae.config.sections import Config, LogisticConfig, PretrainConfig
from mae.evaluation.evaluate import frozen_judge
from mae.evaluation.features import encoder_features, split_features
from mae.model.mae import MaskedAutoencoder
from mae.training.metrics import METRICS, Metrics, evaluations, read_lines


class Probe:
    """Evaluates in rank 0's process; the others wait for it in their next all-reduce, on Ascend half an hour at most.

    The features come from a copy of the encoder with a graph of its own, so that nothing of the training is touched.
    Records are stored in shuffled order: the first `eval_images` of a split are a sample of it, the same each time.

    Args:
        model: what is trained.
    """

    def __init__(self, run_dir: Path, config: Config, model: MaskedAutoencoder, metrics: Metrics) -> None:
        recipe = config.recipe
        assert isinstance(recipe, PretrainConfig)
        self.config, self.recipe, self.model, self.metrics = config, recipe, model, metrics
        self.copy = MaskedAutoencoder(config.model)
        self.encode = encoder_features(self.copy, (config.linear or LogisticConfig()).pool)
        self.records = Path(str(config.data.records))
        self.done = {(line["step"], line["protocol"]) for line in evaluations(read_lines(run_dir / METRICS))}

    def __call__(self, step: int, epoch: int) -> None:
        """Evaluate behind a step that ends an epoch, by what has not been measured there before a kill."""
        protocols = [name for name in self.recipe.eval_protocols if (step, name) not in self.done]
        if protocols:
            with self.metrics.apart():
                self._measure(protocols, step, epoch)

    def _features(self, images: np.ndarray) -> np.ndarray:
        self.metrics.alive()
        return self.encode(images)

    def _measure(self, protocols: Sequence[str], step: int, epoch: int) -> None:
        began = time.monotonic()
        for to, now in zip(self.copy.get_parameters(), self.model.get_parameters()):
            to.set_data(Tensor(now.asnumpy().copy()))
        workers, limit = self.config.data.workers, self.recipe.eval_images
        train, val = (
            split_features(self.records, split, self.config.model, self._features, workers=workers, limit=limit)
            for split in ("train", "val")
        )
        for protocol in protocols:
            correct = frozen_judge(protocol, self.config)(train, val) == val.labels
            took, began = time.monotonic() - began, time.monotonic()
            self.metrics.write_evaluation(
                step,
                epoch=float(epoch),
                protocol=protocol,
                top1=float(correct.mean()),
                images=len(correct),
                train_images=len(train.labels),
                evaluation_seconds=round(took, 2),
            )
