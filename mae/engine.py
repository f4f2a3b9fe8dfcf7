"""The training loop of one rank: `python -m mae.engine RUN_DIR`, started by mae/train.py."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
from mindspore import Tensor

from datasets.batches import Batch, steps_per_epoch, train_batches
from datasets.records import load_index
from datasets.stage import InputError

from . import checkpoint
from .config import Config, LinprobeConfig, load_config
from .device import compute_dtype, setup
from .job import Job, Place, build_job
from .launch import rank_main
from .metrics import MetricsWriter
from .objective import Accumulate, Report, Update
from .restore import load_parameters
from .schedule import lr_at

LOG_STEPS = 10  # steps between two readings of the loss, each of which waits for the device


def run(run_dir: Path) -> None:
    """Train the job of `run_dir`/config.yaml to its end, from the newest checkpoint if there is one.

    Raises:
        InputError: config and records do not fit each other, or the loss is not finite.
    """
    config = load_config(run_dir / "config.yaml")
    rank = setup(config.device.target, ranks=config.device.ranks)
    records = load_index(str(config.data.records))
    job = build_job(config, classes=records.classes, rank=rank)
    recipe, update = job.recipe, build_update(config, job)
    finished_epochs, finished_steps = _resume(run_dir / "checkpoints", job, update)
    metrics = MetricsWriter(run_dir / "metrics.jsonl", step=finished_steps) if rank == 0 else None
    images = records.splits["train"].images
    for step, epoch, loss in _epochs(job, update, config, images, finished_epochs, rank, metrics):
        if rank == 0 and (epoch % recipe.checkpoint_epochs == 0 or epoch == recipe.epochs):
            _save(run_dir / "checkpoints" / str(step), job, update, step=step, epoch=epoch, loss=loss)


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


def _epochs(
    job: Job, update: Update, config: Config, images: int, finished: int, rank: int, metrics: MetricsWriter | None
) -> Iterator[tuple[int, int, float]]:
    """Train epoch after epoch; yields (steps done, epochs done, last loss) behind each."""
    recipe, ranks, accum_iter = job.recipe, config.device.ranks, job.recipe.accum_iter
    updates = steps_per_epoch(images, batch_size=recipe.batch_size * accum_iter, ranks=ranks)
    lr = recipe.lr(ranks=ranks)
    accumulate = Accumulate(update) if accum_iter > 1 else None
    job.model.set_train(True)
    for epoch in range(finished, recipe.epochs):
        batches = epoch_batches(job, config, epoch, rank)
        for number in range(updates):
            rate = lr_at(
                epoch + number / updates,
                lr=lr,
                min_lr=recipe.min_lr,
                warmup_epochs=recipe.warmup_epochs,
                epochs=recipe.epochs,
            )
            for part in range(accum_iter - 1):
                accumulate(*_tensors(job, next(batches), Place(epoch, number, part)))  # type: ignore[misc]
            step = epoch * updates + number + 1
            inputs = _tensors(job, next(batches), Place(epoch, number, accum_iter - 1))
            result = update(Tensor(rate, ms.float32), *inputs)
            if step % LOG_STEPS == 0 or number == updates - 1:
                report = Report.read(result)
                _check(report, step)
                if metrics:
                    done, per_step = epoch + (number + 1) / updates, recipe.batch_size * ranks * accum_iter
                    metrics.write(step, report, epoch=done, lr=rate, images_per_step=per_step)
        yield step, epoch + 1, report.loss


def epoch_batches(job: Job, config: Config, epoch: int, rank: int) -> Iterator[Batch]:
    """A rank's batches of one epoch, augmented as the recipe says."""
    return train_batches(
        str(config.data.records),
        image_shape=job.model.config.image_shape,
        batch_size=job.recipe.batch_size,
        crop_scale=job.recipe.crop_scale,
        seed=config.seed,
        epoch=epoch,
        rank=rank,
        ranks=config.device.ranks,
        workers=config.data.workers,
        clipped=isinstance(job.recipe, LinprobeConfig),
    )


def _tensors(job: Job, batch: Batch, place: Place) -> list[Tensor]:
    return [Tensor(array) for array in job.inputs(batch, place)]


def _check(report: Report, step: int) -> None:
    """Stop where an update was not applied for a reason that no smaller loss scale would mend."""
    if not report.halted:
        return
    first = step - report.halted + 1
    if report.halted > 1:
        found = "a loss or gradient that was not"
    elif math.isfinite(report.loss):
        found = f"gradient norm {report.grad_norm}"
    else:
        found = str(report.loss)
    todo = "lower blr or lengthen warmup_epochs; the checkpoints before it are intact"
    raise InputError(f"step {first}", expected="a finite loss and gradient", found=found, todo=todo)


def _resume(checkpoints: Path, job: Job, update: Update) -> tuple[int, int]:
    """Load the newest checkpoint, if any, into the job; returns the finished epochs and steps."""
    found = checkpoint.newest(checkpoints)
    if found is None:
        return 0, 0
    load_parameters(job.model, checkpoint.load_weights(found / checkpoint.MODEL), source=found)
    saved = checkpoint.load_weights(found / checkpoint.OPTIMIZER)
    names = sorted(parameter.name for parameter in update.state)
    if sorted(saved) != names:
        todo = "start again with --fresh"
        differing = ", ".join(sorted(set(saved) ^ set(names))[:5])
        raise InputError(found / checkpoint.OPTIMIZER, expected="this recipe's state", found=differing, todo=todo)
    for parameter in update.state:
        parameter.set_data(Tensor(saved[parameter.name]))
    state = checkpoint.load_state(found)
    print(f"resuming after epoch {state.epoch} from {found}", flush=True)
    return state.epoch, state.step


def _save(directory: Path, job: Job, update: Update, *, step: int, epoch: int, loss: float) -> None:
    weights = {p.name: p.asnumpy() for p in job.model.get_parameters()}
    moments = {p.name: p.asnumpy() for p in update.state}
    averages = None
    if update.ema is not None:
        averages = {p.name: a.asnumpy() for p, a in zip(job.optimizer.params, update.averages)}
    checkpoint.save(directory, weights, job.card, moments=moments, step=step, epoch=epoch, loss=loss, averages=averages)


if __name__ == "__main__":
    rank_main(lambda: run(Path(sys.argv[1])))
