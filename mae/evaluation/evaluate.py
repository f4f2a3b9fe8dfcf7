"""Stage evaluate: what a checkpoint is worth, by a named protocol, into runs/<run>/evaluations/<protocol>.json.

classify    top-1 and top-5 of a classifier on the validation split
linear      linear probe on frozen features, beside two baselines measured the same way
knn         nearest neighbours on frozen features, beside the same baselines
finetune    the encoder trained further end to end as a classifier, then `classify`
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
from mindspore import Tensor
from pydantic import BaseModel, ConfigDict, ValidationError

from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, write_json
from datasets.records import check_labelled, load_index
from mae.config.sections import Config, LinearConfig
from mae.device.context import setup
from mae.evaluation.features import (
    Features,
    encoder_features,
    in_fixed_batches,
    pixel_features,
    seeded_mae,
    split_features,
)
from mae.runs import checkpoint
from mae.train import train
from mae.training.update import Classify
from mae.weights.restore import load_classifier, load_encoder

PROTOCOLS = ("classify", "linear", "knn", "finetune")
NEIGHBOURS = 10
MAX_ITERATIONS = 1000  # scikit-learn warns where they do not suffice
VERSION = 2  # raise it when a protocol changes: what was measured before is then measured again

logger = logging.getLogger(__name__)


class Score(BaseModel):
    """Accuracy of one encoder on the validation split; shares between 0 and 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: Literal["pretrained", "random", "pixels", "finetuned"]
    top1: float
    top5: Optional[float] = None
    images: int
    features: int


class Evaluation(StageResult):
    """One protocol's file and what stands in it."""

    path: Path
    protocol: str
    results: list[Score]


def evaluate(
    checkpoint_path: PathLike,
    records: PathLike,
    *,
    protocol: str,
    config: Config,
    workspace: PathLike,
    out: PathLike | None = None,
    refresh: bool = False,
) -> Evaluation:
    """Measure a checkpoint on the validation split of `records`.

    Args:
        checkpoint_path: model file, checkpoint directory or run directory.
        records: a directory that `mae data shard` wrote.
        protocol: one of PROTOCOLS.
        config: gives the section of the protocol (`linear`, `finetune`), the device and the seed.
        workspace: where `finetune` trains.
        out: directory of the result; default: `evaluations/` of the run that the checkpoint belongs to.
        refresh: measure again although the same has been measured before.

    Raises:
        InputError: the checkpoint, the records or the config do not fit the protocol.
    """
    if protocol not in PROTOCOLS:
        todo = "name one of them"
        raise InputError("protocol", expected=f"one of {', '.join(PROTOCOLS)}", found=repr(protocol), todo=todo)
    model, records = checkpoint.model_file(Path(checkpoint_path)), Path(records)
    index = load_index(records)
    check_labelled(records, classes=len(index.classes), val=index.splits["val"].images)
    inputs = {
        "protocol": protocol,
        "version": VERSION,
        "checkpoint": checkpoint.model_digest(model),
        "records": index.result(records, reused=True).digest,
        "settings": _settings(protocol, config),
    }
    directory = Path(out) if out is not None else _run(model) / "evaluations"
    path = directory / f"{protocol}.json"
    earlier = None if refresh else _earlier(path, inputs)
    if earlier is not None:
        logger.info("%s: reusing the evaluation", path)
        return earlier
    started = time.monotonic()
    setup(config.device.target, ranks=1, compute=config.compute)
    results = list(_measure(protocol, model, records, config, Path(workspace)))
    write_json(
        path,
        {**inputs, "results": [r.model_dump() for r in results], "seconds": round(time.monotonic() - started, 1)},
    )
    for score in results:
        logger.info("%s: %s %.1f %% of %d images", protocol, score.encoder, 100 * score.top1, score.images)
    return Evaluation(path=path, protocol=protocol, results=results)


def _run(model: Path) -> Path:
    run = checkpoint.run_directory(model)
    if run is None:
        todo = "say where the result goes: --out"
        raise InputError(model, expected="a checkpoint of a run", found="a file elsewhere", todo=todo)
    return run


def _settings(protocol: str, config: Config) -> dict[str, Any]:
    """What the result depends on besides checkpoint and records."""
    if protocol == "finetune":
        if config.finetune is None:
            raise InputError("config", expected="a section `finetune:`", found="none", todo="add it")
        return {**config.finetune.model_dump(mode="json"), "seed": config.seed, "ranks": config.device.ranks}
    if protocol == "classify":
        return {}
    linear = config.linear or LinearConfig()
    if protocol == "knn":
        return {"pool": linear.pool, "neighbours": NEIGHBOURS, "seed": config.seed}
    return {**linear.model_dump(mode="json"), "seed": config.seed}


def _earlier(path: Path, inputs: dict[str, Any]) -> Evaluation | None:
    """What was measured before of the same inputs."""
    try:
        found = json.loads(path.read_text())
        if {key: found.get(key) for key in inputs} != inputs:
            return None
        scores = [Score.model_validate(score) for score in found["results"]]
    except (OSError, ValueError, KeyError, ValidationError):
        return None
    return Evaluation(path=path, protocol=inputs["protocol"], results=scores, reused=True)


def _measure(protocol: str, model: Path, records: Path, config: Config, workspace: Path) -> Iterator[Score]:
    if protocol == "classify":
        yield _classify(model, records, config)
    elif protocol == "finetune":
        data = config.data.model_copy(update={"records": str(records)})
        job = config.model_copy(
            update={"task": "finetune", "name": f"{config.name}-finetune", "init": str(model), "data": data}
        )
        yield _classify(train(job, workspace=workspace).checkpoint, records, config)
    else:
        yield from _frozen(model, records, config, frozen_judge(protocol, config))


def _frozen(
    model: Path, records: Path, config: Config, judge: Callable[[Features, Features], np.ndarray]
) -> Iterator[Score]:
    """Judge the pre-trained encoder, the same one at its random initialisation, and raw pixels."""
    pretrained = load_encoder(model)
    size = pretrained.config
    pool = (config.linear or LinearConfig()).pool
    encoders: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
        "pretrained": encoder_features(pretrained, pool),
        "random": encoder_features(seeded_mae(size, config.seed), pool),
        "pixels": partial(pixel_features, config=size),
    }
    for name, compute in encoders.items():
        train_set, val_set = (
            split_features(records, split, size, compute, workers=config.data.workers) for split in ("train", "val")
        )
        correct = judge(train_set, val_set) == val_set.labels
        yield Score(encoder=name, top1=float(correct.mean()), images=len(correct), features=val_set.values.shape[1])


def frozen_judge(protocol: str, config: Config) -> Callable[[Features, Features], np.ndarray]:
    """The function (train features, val features) -> predicted labels of val, for protocol linear or knn."""
    return _linear_judge(config.linear or LinearConfig()) if protocol == "linear" else _neighbours_judge


def _linear_judge(settings: LinearConfig) -> Callable[[Features, Features], np.ndarray]:
    """Logistic regression on standardised features.

    Of several penalties each encoder gets the one that is best for it on a held-out fifth of the training split; one
    penalty is the same for all. Penalties count per image: l2 / 2 * |W|^2 beside the mean loss.
    """

    def fit(values: np.ndarray, labels: np.ndarray, l2: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        probe = LogisticRegression(C=1 / (l2 * len(labels)), tol=settings.tol, max_iter=MAX_ITERATIONS)
        return probe.fit(values, labels)

    def judge(train_set: Features, val_set: Features) -> np.ndarray:
        mean, std = train_set.values.mean(0), train_set.values.std(0) + 1e-6
        values, labels = (train_set.values - mean) / std, train_set.labels
        best = settings.l2[0]
        if len(settings.l2) > 1:
            held_out = np.arange(len(labels)) % 5 == 0  # records are stored in shuffled order
            accuracy = [
                fit(values[~held_out], labels[~held_out], l2).score(values[held_out], labels[held_out])
                for l2 in settings.l2
            ]
            best = settings.l2[int(np.argmax(accuracy))]
        return fit(values, labels, best).predict((val_set.values - mean) / std)

    return judge


def _neighbours_judge(train_set: Features, val_set: Features) -> np.ndarray:
    from sklearn.neighbors import KNeighborsClassifier

    def unit(values: np.ndarray) -> np.ndarray:
        return values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)

    judge = KNeighborsClassifier(min(NEIGHBOURS, len(train_set.labels))).fit(unit(train_set.values), train_set.labels)
    return judge.predict(unit(val_set.values))


def _classify(model: Path, records: Path, config: Config) -> Score:
    """Top-1 and top-5 of a classifier on the validation split, every image counted once."""
    classifier = load_classifier(model)
    card, expected = classifier.card, load_index(records).classes
    if len(card.labels) != len(expected) or card.classes not in (None, expected):
        todo = "evaluate on the data it was trained on"
        raise InputError(model, expected=f"the classes {expected}", found=str(card.labels), todo=todo)
    if card.classes is None:
        logger.warning("%s names no classes: taken to be the data's, in their order", model)
    logits = Classify(classifier)
    logits.set_train(False)
    compute = in_fixed_batches(lambda images: logits(Tensor(images)).asnumpy())
    found = split_features(records, "val", classifier.config, compute, workers=config.data.workers)
    ranking = np.argsort(-found.values, axis=1)
    hits = ranking == found.labels[:, None]
    top5 = float(hits[:, :5].any(1).mean()) if len(expected) > 5 else None
    return Score(
        encoder="finetuned",
        top1=float(hits[:, 0].mean()),
        top5=top5,
        images=len(hits),
        features=classifier.config.embed_dim,
    )
