"""Measures a checkpoint by a protocol and writes the result into evaluations/<protocol>.json of its run."""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any, Optional

from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, write_json
from datasets.records import check_labelled, load_index
from mae.config.protocols import protocols
from mae.config.sections import Config, LinearConfig, TrainingSection
from mae.device.context import check_target, free_devices, setup
from mae.evaluation.protocol import Score, Subject, protocol_settings
from mae.launch.call import in_child
from mae.runs.evaluations import EvaluationFile, read_evaluation
from mae.runs.model_file import model_digest, model_file, run_directory
from mae.train import train

logger = logging.getLogger(__name__)


class Evaluation(StageResult):
    """The result of one protocol and the file that holds it."""

    path: Path
    protocol: str
    results: list[Score]


def evaluate(
    checkpoint: PathLike,
    records: PathLike,
    *,
    protocol: str,
    config: Config,
    workspace: PathLike,
    out: Optional[PathLike] = None,
    refresh: bool = False,
) -> Evaluation:
    """Measure a checkpoint on the validation split of `records`; an existing result of the same inputs is reused.

    Args:
        checkpoint: model file, checkpoint directory or run directory.
        records: a directory that `mae data shard` wrote.
        protocol: name of a file of mae/evaluation/ (see `mae.config.protocols`).
        config: provides the protocol's section, the seed, and the device, whose interpreter and ranks compute.
        workspace: receives the runs of protocols that train.
        out: directory of the result; none: `evaluations/` of the run that the checkpoint belongs to.
        refresh: measure again even if there is a result of the same inputs.

    Raises:
        InputError: the checkpoint, the records or the config do not fit the protocol.
        RanksFailed: a process ended before its work was done.
    """
    known = protocols()
    if protocol not in known:
        expected, todo = f"one of {', '.join(known)}", "name one of them"
        raise InputError("protocol", expected=expected, found=repr(protocol), todo=todo)
    module, model, records = known[protocol], model_file(Path(checkpoint)), Path(records)
    index, settings = load_index(records), protocol_settings(protocol, config)
    check_labelled(records, classes=len(index.classes), val=index.splits["val"].images)
    inputs: dict[str, Any] = {
        "protocol": protocol,
        "version": module.VERSION,
        "checkpoint": model_digest(model),
        "records": index.result(records, reused=True).digest,
        "settings": {**settings.model_dump(mode="json"), "seed": config.seed},
    }
    if isinstance(settings, TrainingSection):
        inputs["settings"]["ranks"] = config.device.ranks
    path = _directory(model, out) / f"{protocol}.json"
    earlier = None if refresh else _earlier(path, inputs)
    if earlier is not None:
        logger.info("%s: reusing the evaluation", path)
        return earlier
    started = time.monotonic()
    device = config.measured_on
    check_target(device)
    if isinstance(settings, TrainingSection) and hasattr(module, "ENCODER"):
        model = _trained(model, records, config, protocol, settings, Path(workspace))
    ranks = 1 if hasattr(module, "measure") else device.ranks
    devices = free_devices(device.target, ranks)
    measured = in_child(_measured, device, near=path.parent, ranks=ranks, devices=devices)
    results = measured(protocol, Subject(model, records, config, Path(workspace)), ranks)
    found = EvaluationFile(**inputs, results=results, seconds=round(time.monotonic() - started, 1))
    write_json(path, found.model_dump())
    for score in results:
        logger.info("%s: %s %.1f %% of %d images", protocol, score.encoder, 100 * score.top1, score.images)
    return Evaluation(path=path, protocol=protocol, results=results)


def _trained(
    model: Path, records: Path, config: Config, protocol: str, recipe: TrainingSection, workspace: Path
) -> Path:
    """Train a classifier from a checkpoint by a protocol's recipe and return its model file."""
    task = "linear" if isinstance(recipe, LinearConfig) else "finetune"
    data = config.data.model_copy(update={"records": str(records)})
    changed = {"task": task, "name": f"{config.name}-{protocol}", "init": str(model), "data": data, task: recipe}
    return train(config.model_copy(update=changed), workspace=workspace).checkpoint


def _measured(protocol: str, subject: Subject, ranks: int) -> list[Score]:
    """Return the scores of a protocol in rank 0, none in the other ranks. Each of `ranks` processes calls this."""
    from mae.evaluation.classify import classify
    from mae.evaluation.features import measure_frozen

    module, config = protocols()[protocol], subject.config
    settings = protocol_settings(protocol, config)
    setup(config.measured_on.target, ranks=1, compute=config.compute)
    if hasattr(module, "measure"):
        return list(module.measure(subject, settings))
    if hasattr(module, "predict"):
        predict = partial(module.predict, settings=settings)
        return list(measure_frozen(subject, getattr(settings, "pool", "cls"), predict, ranks))
    return list(classify(subject, module.ENCODER, ranks))


def _directory(model: Path, out: Optional[PathLike]) -> Path:
    if out is not None:
        return Path(out)
    run = run_directory(model)
    if run is None:
        todo = "name the directory of the result: --out"
        raise InputError(model, expected="a checkpoint of a run", found="a file outside of any run", todo=todo)
    return run / "evaluations"


def _earlier(path: Path, inputs: dict[str, Any]) -> Optional[Evaluation]:
    """Return the result in `path` if it was measured from the same inputs."""
    try:
        found = read_evaluation(path)
    except (OSError, ValueError):
        return None
    if found.model_dump(include=set(inputs)) != inputs:
        return None
    return Evaluation(path=path, protocol=found.protocol, results=found.results, reused=True)
