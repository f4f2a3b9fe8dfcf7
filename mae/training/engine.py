"""The training loop of one rank: `python -m mae.training.engine RUN_DIR [CHECKPOINT]`, started by mae/train.py."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Optional

import mindspore as ms
from mindspore import Tensor

from datasets.augmentation import Erasing, rand_augment
from datasets.base.errors import InputError
from datasets.batches import Batch, steps_per_epoch, train_batches
from mae.config.sections import (
    FinetuneConfig,
    LinearConfig,
    PretrainConfig,
)
from mae.device.context import setup, waited_for_ranks
from mae.launch.ranks import rank_main
from mae.model.mae import MaskedAutoencoder
from mae.runs import checkpoint
from mae.runs.failure import FAILURE
from mae.runs.run import Run
from mae.runs.saver import Saver
from mae.training.failed_step import write_failed_step
from mae.training.metrics import Metrics
from mae.training.schedule import lr_at
from mae.training.state import host_copies, resume
from mae.training.task import Job, Place, build_job, build_update
from mae.training.update import Accumulate, StepResult

LOG_STEPS = 10  # steps between two readings of the loss, each of which waits for the device
HALT_SECONDS = 600  # that rank 0 has to write the failed step of all ranks


class Engine:
    """One rank's training of a run, from a checkpoint or from the first step to the last.

    Args:
        run: its config.yaml and its records exist.
        resume_from: checkpoint directory that the launcher has verified; none: start with the first step.
    """

    def __init__(self, run: Run, resume_from: Optional[Path]) -> None:
        config = run.config_in_force
        self.run, self.ranks = run, config.device.ranks
        self.rank = setup(config.device.target, ranks=self.ranks, compute=config.compute)
        self.job = build_job(config, classes=run.index.classes)
        self.recipe, self.update = self.job.recipe, build_update(self.job)
        batch = self.recipe.batch_size * self.recipe.accum_iter
        self.updates = steps_per_epoch(run.index.splits["train"].images, batch_size=batch, ranks=self.ranks)
        self.start = resume(resume_from, self.job, self.update) if resume_from is not None else 0
        self.metrics = Metrics(run, rank=self.rank, step=self.start, waited=waited_for_ranks)

    def train(self) -> None:
        """Train to the end.

        Raises:
            InputError: config and records do not fit each other, or the loss is not finite.
        """
        probe, recipe = self._probe(), self.recipe
        with Saver(self.run.checkpoints, keep=recipe.keep_checkpoints, keep_epochs=recipe.keep_epochs) as saver:
            if probe is not None and self.start and self._evaluates(self.start):
                probe(self.start, self.start // self.updates)
            for step, result in self._steps():
                if self.rank == 0 and result is not None:
                    self._save(saver, step, result)
                saver.check()
                if self._evaluates(step):
                    self.metrics.skip_ranks()
                    if probe is not None:
                        probe(step, step // self.updates)

    def _steps(self) -> Iterator[tuple[int, Optional[StepResult]]]:
        """Yield the number of each step after it was done, and its result where a checkpoint is due."""
        recipe, accum_iter, updates = self.recipe, self.recipe.accum_iter, self.updates
        lr = recipe.lr(ranks=self.ranks)
        accumulate = Accumulate(self.update) if accum_iter > 1 else None
        self.job.model.set_train(True)
        epochs, first = range(self.start // updates, recipe.epochs), self.start % updates * accum_iter
        batches = self.metrics.timed(rank_batches(self.job, epochs, self.rank, start=first))
        for done in range(self.start, recipe.epochs * updates):
            epoch, number = divmod(done, updates)
            rate = lr_at(
                epoch + number / updates,
                lr=lr,
                min_lr=recipe.min_lr,
                warmup_epochs=recipe.warmup_epochs,
                epochs=recipe.epochs,
            )
            for part in range(accum_iter - 1):
                accumulate(*self._tensors(next(batches), epoch, number, part))  # type: ignore[misc]
            inputs = self._tensors(next(batches), epoch, number, accum_iter - 1)
            computed = self.update(Tensor(rate, ms.float32), *inputs)
            step = done + 1
            logged, due = step % LOG_STEPS == 0 or step % updates == 0, recipe.checkpoint_due(step, updates)
            result = self.metrics.waiting(StepResult.read, computed) if logged or due else None
            if result is not None and result.halted:
                self._halt(step - result.halted + 1, result)
            if result is not None and logged:
                self.metrics.write(step, result, epoch=step / updates, lr=rate)
            yield step, result if due else None

    def _tensors(self, batch: Batch, epoch: int, number: int, part: int) -> list[Tensor]:
        return [Tensor(array) for array in self.job.inputs(batch, Place(epoch, number, part, self.rank))]

    def _evaluates(self, step: int) -> bool:
        return isinstance(self.recipe, PretrainConfig) and self.recipe.evaluation_due(step, self.updates)

    def _probe(self) -> Optional[Callable[[int, int], None]]:
        """Return rank 0's evaluation between epochs, if the config asks for it."""
        if self.rank != 0 or not isinstance(self.recipe, PretrainConfig) or self.recipe.eval_epochs is None:
            return None
        from mae.training.probe import Probe  # imports scikit-learn, which takes a second

        assert isinstance(self.job.model, MaskedAutoencoder)
        return Probe(self.run, self.job.model, self.metrics)

    def _save(self, saver: Saver, step: int, result: StepResult) -> None:
        """Copy the state from the device, and have it written in the background."""
        saver.wait()  # so that only one copy exists at a time
        update, job, averages = self.update, self.job, None
        if update.ema is not None:
            averages = {p.name: a.asnumpy().copy() for p, a in zip(job.optimizer.params, update.averages)}
        write = functools.partial(
            checkpoint.save,
            weights=host_copies(job.model.get_parameters()),
            card=job.card,
            moments=host_copies(update.state),
            averages=averages,
            step=step,
            epoch=step // self.updates,
            update=step % self.updates,
            loss=result.loss,
            loss_scale={p.name: float(p.asnumpy()) for p in update.loss_scale.state},
            inputs=self.run.inputs,
            ranks=self.ranks,
            mindspore=ms.__version__,
            decoder_float32=job.config.compute.decoder_float32,
        )
        saver.save(step, write)

    def _halt(self, first: int, result: StepResult) -> None:
        """Raise InputError for step `first`, whose loss or gradients are not finite at loss scale 1.

        No update was applied since, so parameters and state are those before that step. Its batches are made again and
        stored with them.
        """
        if self.rank != 0:
            time.sleep(HALT_SECONDS)  # rank 0 writes the files; when it ends, the launcher ends this process
        saturation = "a number that the device had to saturate, at loss scale 1"
        if result.halted > 1:
            found = saturation if self.update.gradients.saturates else "a loss or gradient that was not"
        elif not math.isfinite(result.loss):
            found = str(result.loss)
        elif not math.isfinite(result.grad_norm):
            found = f"gradient norm {result.grad_norm}"
        else:
            found = saturation
        epoch, number = divmod(first - 1, self.updates)
        parts = self.recipe.accum_iter
        batches = {}
        for rank in range(self.ranks):
            stream = rank_batches(self.job, [epoch], rank, start=number * parts)
            for part in range(parts):
                batches[Place(epoch, number, part, rank)] = next(stream)
            stream.close()  # type: ignore[attr-defined]
        directory = self.run.directory / FAILURE / f"step_{first}"
        weights, moments = host_copies(self.job.model.get_parameters()), host_copies(self.update.state)
        write_failed_step(directory, self.job, weights, moments, batches, step=first)
        todo = (
            "lower blr or lengthen warmup_epochs and start from an earlier checkpoint (mae train --from); "
            f"mae train --replay {directory} runs this step again"
        )
        raise InputError(f"step {first}", expected="a finite loss and gradient", found=found, todo=todo)


def rank_batches(job: Job, epochs: Iterable[int], rank: int, *, start: int) -> Iterator[Batch]:
    """Yield a rank's batches of `epochs`, in the first of them from batch number `start` on."""
    recipe, model, config = job.recipe, job.model.config, job.config
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
        clipped=isinstance(recipe, LinearConfig),
        changes=changes,
        erasing=erasing,
    )


def main(run_directory: str, resume_from: Optional[str] = None) -> None:
    """Train one rank of a run."""
    Engine(Run.open(Path(run_directory)), Path(resume_from) if resume_from is not None else None).train()


if __name__ == "__main__":
    rank_main(lambda: main(*sys.argv[1:]))
