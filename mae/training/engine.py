"""The training loop of one rank: `python -m mae.training.engine RUN_DIR`, started by mae/train.py."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from datasets.augmentation import Erasing, rand_augment
from datasets.base.errors import InputError
from datasets.batches import Batch, steps_per_epoch, train_batches
from datasets.records import load_index
from mae.config.sections import Config, FinetuneConfig, LinprobeConfig, PretrainConfig, Recipe, load_config
from mae.device.context import compute_dtype, setup, waited_for_ranks
from mae.launch.ranks import rank_main
from mae.model.mae import MaskedAutoencoder
from mae.runs import checkpoint
from mae.runs.failure import FAILURE, fallback_step, fallen_back, write_failure
from mae.runs.inputs import run_inputs
from mae.runs.saver import Saver
from mae.training.metrics import Metrics
from mae.training.schedule import lr_at
from mae.training.task import Job, Place, build_job
from mae.training.update import Accumulate, Report, Update
from mae.weights.restore import load_parameters

LOG_STEPS = 10  # steps between two readings of the loss, each of which waits for the device
HALT_SECONDS = 600  # that rank 0 has to write what made the others halt, too


def run(run_dir: Path) -> None:
    """Train the job of `run_dir`/config.yaml to its end, from the newest checkpoint if there is one.

    Raises:
        InputError: config and records do not fit each other, or the loss is not finite.
    """
    config = fallen_back(load_config(run_dir / "config.yaml"), run_dir)
    rank = setup(config.device.target, ranks=config.device.ranks, compute=config.compute)
    job = build_job(config, classes=load_index(str(config.data.records)).classes)
    recipe, update = job.recipe, build_update(config, job)
    start = _resume(run_dir / "checkpoints", job, update)
    notes = {} if fallback_step(run_dir) is None else {"decoder": "float32"}
    metrics = Metrics(run_dir, config, rank=rank, step=start, notes=notes, waited=waited_for_ranks)
    saver = Saver(run_dir / "checkpoints", keep=recipe.keep_checkpoints, keep_epochs=recipe.keep_epochs)
    inputs = run_inputs(load_config(run_dir / "config.yaml")) if rank == 0 else {}
    probe, updates = _probe(run_dir, config, job, metrics) if rank == 0 else None, _epoch_updates(config)
    with saver:
        if probe is not None and start and _evaluates(recipe, start, updates):
            probe(start, start // updates)
        for step, epoch, done, report in _updates(run_dir, job, update, config, start, rank, metrics):
            if rank == 0 and report is not None:
                state = {"step": step, "epoch": epoch, "update": done, "loss": report.loss, "inputs": inputs}
                _save(saver, job, update, config, state)
            saver.check()
            if _evaluates(recipe, step, updates):
                metrics.skip_ranks()
                if probe is not None:
                    probe(step, epoch)


def build_update(config: Config, job: Job) -> Update:
    """The compiled step of a job."""
    return Update(
        job.loss,
        job.optimizer,
        ranks=config.device.ranks,
        accum_iter=job.recipe.accum_iter,
        clip_grad=job.recipe.clip_grad,
        ema=job.recipe.ema,
        dynamic_scale=compute_dtype(config.compute) == ms.float16,
    )


def _updates(
    run_dir: Path, job: Job, update: Update, config: Config, start: int, rank: int, metrics: Metrics
) -> Iterator[tuple[int, int, int, Report | None]]:
    """Train on behind step `start`; yields (steps done, whole epochs done, updates done in the epoch, report) per step.

    The report is there where a checkpoint is due.
    """
    recipe, accum_iter, updates = job.recipe, job.recipe.accum_iter, _epoch_updates(config)
    lr = recipe.lr(ranks=config.device.ranks)
    accumulate = Accumulate(update) if accum_iter > 1 else None
    job.model.set_train(True)
    epochs, first = range(start // updates, recipe.epochs), start % updates * accum_iter
    batches = metrics.timed(rank_batches(job, config, epochs, rank, start=first))
    for done in range(start, recipe.epochs * updates):
        epoch, number = divmod(done, updates)
        rate = lr_at(
            epoch + number / updates,
            lr=lr,
            min_lr=recipe.min_lr,
            warmup_epochs=recipe.warmup_epochs,
            epochs=recipe.epochs,
        )
        for part in range(accum_iter - 1):
            accumulate(*_tensors(job, next(batches), Place(epoch, number, part, rank)))  # type: ignore[misc]
        inputs = _tensors(job, next(batches), Place(epoch, number, accum_iter - 1, rank))
        result = update(Tensor(rate, ms.float32), *inputs)
        step = done + 1
        logged, due = step % LOG_STEPS == 0 or step % updates == 0, recipe.checkpoint_due(step, updates)
        report = metrics.waiting(Report.read, result) if logged or due else None
        if report is not None and report.halted:
            _halt(run_dir, config, job, update, rank, updates, step - report.halted + 1, report)
        if report is not None and logged:
            metrics.write(step, report, epoch=step / updates, lr=rate)
        yield step, step // updates, step % updates, report if due else None


def _epoch_updates(config: Config) -> int:
    recipe, images = config.recipe, load_index(str(config.data.records)).splits["train"].images
    return steps_per_epoch(images, batch_size=recipe.batch_size * recipe.accum_iter, ranks=config.device.ranks)


def _evaluates(recipe: Recipe, step: int, updates: int) -> bool:
    """Whether the encoder is evaluated behind a step."""
    return isinstance(recipe, PretrainConfig) and recipe.evaluation_due(step, updates)


def _probe(run_dir: Path, config: Config, job: Job, metrics: Metrics) -> Callable[[int, int], None] | None:
    """What evaluates between epochs, where the config says so."""
    if not isinstance(job.recipe, PretrainConfig) or job.recipe.eval_epochs is None:
        return None
    from mae.training.probe import Probe  # with scikit-learn, which takes a second

    assert isinstance(job.model, MaskedAutoencoder)
    return Probe(run_dir, config, job.model, metrics)


def rank_batches(job: Job, config: Config, epochs: Iterable[int], rank: int, *, start: int) -> Iterator[Batch]:
    """A rank's batches of epochs, in the first of them from number `start` on."""
    recipe, model = job.recipe, job.model.config
    changes = erasing = None
    if isinstance(recipe, FinetuneConfig):
        if recipe.rand_augment is not None:
            changes = rand_augment(recipe.rand_augment, mean=model.pixel_mean)
        if recipe.random_erasing:
            erasing = Erasing(recipe.random_erasing, model.pixel_mean, model.pixel_std)
    return train_batches(
        str(config.data.records),
        image_shape=model.image_shape,
        batch_size=recipe.batch_size,
        crop_scale=recipe.crop_scale,
        seed=config.seed,
        epochs=epochs,
        rank=rank,
        ranks=config.device.ranks,
        workers=config.data.workers,
        accum_iter=recipe.accum_iter,
        start_step=start,
        clipped=isinstance(recipe, LinprobeConfig),
        changes=changes,
        erasing=erasing,
    )


def _tensors(job: Job, batch: Batch, place: Place) -> list[Tensor]:
    return [Tensor(array) for array in job.inputs(batch, place)]


def _halt(
    run_dir: Path, config: Config, job: Job, update: Update, rank: int, updates: int, first: int, report: Report
) -> None:
    """Stop where an update was not applied for a reason that no smaller loss scale would mend.

    Nothing was applied since, so that parameters and state are those before step `first`; its batches are made again.
    """
    if rank != 0:
        time.sleep(HALT_SECONDS)  # rank 0 writes what all had; its end ends this process
    saturation = "a number that the device had to saturate, at loss scale 1"
    if report.halted > 1:
        found = saturation if update.gradients.saturates else "a loss or gradient that was not"
    elif not math.isfinite(report.loss):
        found = str(report.loss)
    elif not math.isfinite(report.grad_norm):
        found = f"gradient norm {report.grad_norm}"
    else:
        found = saturation
    epoch, number = divmod(first - 1, updates)
    parts = job.recipe.accum_iter
    batches = {}
    for r in range(config.device.ranks):
        stream = rank_batches(job, config, [epoch], r, start=number * parts)
        for part in range(parts):
            batches[Place(epoch, number, part, r)] = next(stream)
        stream.close()  # type: ignore[attr-defined]
    directory = run_dir / FAILURE / f"step_{first}"
    write_failure(directory, config, job, _host(job.model.get_parameters()), _host(update.state), batches, step=first)
    todo = (
        "lower blr or lengthen warmup_epochs, from a checkpoint before it on (mae train --from); "
        f"mae train --replay {directory} runs this step again"
    )
    raise InputError(f"step {first}", expected="a finite loss and gradient", found=found, todo=todo)


def _resume(checkpoints: Path, job: Job, update: Update) -> int:
    """Load the newest checkpoint, if any, into the job; returns the steps done."""
    found = checkpoint.newest(checkpoints)
    if found is None:
        return 0
    load_run(found, job, update)
    state = checkpoint.load_state(found)
    place = f" and {state.update} updates" if state.update else ""
    print(f"resuming after epoch {state.epoch}{place} from {found}", flush=True)
    return state.step


def load_run(directory: Path, job: Job, update: Update) -> None:
    """Parameters and state of a checkpoint into the job.

    Raises:
        InputError: they are of another job.
    """
    load_parameters(job.model, checkpoint.load_weights(directory / checkpoint.MODEL), source=directory)
    saved = checkpoint.load_weights(directory / checkpoint.OPTIMIZER)
    names = sorted(parameter.name for parameter in update.state)
    if sorted(saved) != names:
        todo = "start again with --fresh"
        differing = ", ".join(sorted(set(saved) ^ set(names))[:5])
        raise InputError(directory / checkpoint.OPTIMIZER, expected="this recipe's state", found=differing, todo=todo)
    for parameter in update.state:
        parameter.set_data(Tensor(saved[parameter.name]))


def _save(saver: Saver, job: Job, update: Update, config: Config, state: dict[str, Any]) -> None:
    """Copy what the device holds, and have it written."""
    saver.wait()  # no second copy beside the first
    averages = None
    if update.ema is not None:
        averages = {p.name: a.asnumpy().copy() for p, a in zip(job.optimizer.params, update.averages)}
    write = functools.partial(
        checkpoint.save,
        weights=_host(job.model.get_parameters()),
        card=job.card,
        moments=_host(update.state),
        averages=averages,
        loss_scale={p.name: float(p.asnumpy()) for p in update.loss_scale.state},
        ranks=config.device.ranks,
        decoder_float32=config.compute.decoder_float32,
        **state,
    )
    saver.save(state["step"], write)


def _host(parameters: Iterable[Parameter]) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in parameters}


if __name__ == "__main__":
    rank_main(lambda: run(Path(sys.argv[1])))
