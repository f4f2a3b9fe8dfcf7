"""Writes checkpoints in the background, one at a time, and removes old ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from datasets.base.files import discard, remove_leftovers
from mae.runs import checkpoint

logger = logging.getLogger(__name__)


class Saver:
    """Writes host copies of a run's state while training continues. Leaving the context waits for the last write.

    Args:
        checkpoints: the run's folder of checkpoints; this process is its only writer.
        keep: number of newest checkpoints that are kept.
        keep_epochs: the checkpoint at the end of every this many epochs is kept as well; none: only the newest.
    """

    def __init__(self, checkpoints: Path, *, keep: int, keep_epochs: int | None) -> None:
        self.checkpoints, self.keep, self.keep_epochs = checkpoints, keep, keep_epochs
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        remove_leftovers(checkpoints)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Wait for the write before, then let `write` write the checkpoint of `step` in the background."""
        self.wait()
        self.writing = self.pool.submit(self._write, step, write)

    def check(self) -> None:
        """Raise the error of a write that has ended."""
        if self.writing is not None and self.writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the current write and raise its error."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.pool.shutdown(wait=True)
        if kind is None:
            self.wait()
        elif self.writing is not None and self.writing.exception() is not None:
            logger.error("%s", self.writing.exception())

    def _write(self, step: int, write: Callable[[Path], None]) -> None:
        write(self.checkpoints / str(step))
        retire(self.checkpoints, step, keep=self.keep, keep_epochs=self.keep_epochs)


def retire(checkpoints: Path, step: int, *, keep: int, keep_epochs: int | None) -> None:
    """Remove old checkpoints up to `step`, except for the newest `keep` and those that `keep_epochs` names.

    Checkpoints after `step` are damaged ones of an earlier attempt; training replaces them when it reaches their step.
    """
    steps = sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdigit())
    for old in [found for found in steps if found <= step][:-keep]:
        directory = checkpoints / str(old)
        if keep_epochs is None or not _ends_epoch(directory, keep_epochs):
            try:
                discard(directory)
            except OSError as error:  # e.g. a reader on NFS has a file open: not a reason to end the training
                logger.warning("%s: an old checkpoint could not be removed: %s", directory, error)


def _ends_epoch(directory: Path, every: int) -> bool:
    try:
        state = checkpoint.load_state(directory)
    except (OSError, ValueError):
        return False
    return state.update == 0 and state.epoch % every == 0
