"""Fine-tuning: the whole encoder is trained further as a classifier by the config's recipe, then classifies."""

from __future__ import annotations

from collections.abc import Iterator

from mae.config.sections import FinetuneConfig
from mae.evaluation.classify import classify
from mae.evaluation.protocol import Score, Subject

VERSION = 2
Settings = FinetuneConfig


def measure(subject: Subject, settings: FinetuneConfig) -> Iterator[Score]:
    """Yield the score of the fine-tuned classifier; its run is <config's name>-finetune in the workspace."""
    yield trained(subject, "finetune", settings)


def trained(subject: Subject, task: str, settings: object) -> Score:
    """Train a classifier from the checkpoint by the recipe of `task` and return its score."""
    from mae.train import train

    config = subject.config
    data = config.data.model_copy(update={"records": str(subject.records)})
    name, init = f"{config.name}-{task}", str(subject.model)
    job = config.model_copy(update={"task": task, "name": name, "init": init, "data": data, task: settings})
    return classify(train(job, workspace=subject.workspace).checkpoint, subject.records, config)
