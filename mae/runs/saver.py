"""Checkpoints are written in the background, one at a time, and old ones are removed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from datasets.base.files import discard, remove_leftovers
from mae.runs import checkpoint

logger = logging.getLogger(__name__)


class Saver:
    """Writes host copies of a run's state while training goes on; leaving the context waits for the last.

    Args:
        checkpoints: the run's directory of checkpoints, of which one process is the writer.
        keep: number of newest checkpoints that stay.
        keep_epochs: those at the end of every so many epochs stay too.
    """

    def __init__(self, checkpoints: Path, *, keep: int, keep_epochs: int | None) -> None:
        self.checkpoints, self.keep, self.keep_epochs = checkpoints, keep, keep_epochs
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        remove_leftovers(checkpoints)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Have `write` fill the checkpoint of `step`, once the one before is finished."""
        self.wait()
        self.writing = self.pool.submit(self._write, step, write)

    def check(self) -> None:
        """Raise what a write that has ended raised."""
        if self.writing is not None and self.writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the write that is under way and raise what it raises."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(wait=True)
        if kind is None:
            self.wait()
        elif self.writing is not None and self.writing.exception() is not None:
            logger.error("%s", self.writing.exception())

    def _write(self, step: int, write: Callable[[Path], None]) -> None:
        write(self.checkpoints / str(step))
        retire(self.checkpoints, step, keep=self.keep, keep_epochs=self.keep_epochs)


def retire(checkpoints: Path, step: int, *, keep: int, keep_epochs: int | None) -> None:
    """Remove the checkpoints before the newest `keep` up to `step`, but those that `keep_epochs` holds.

    Later ones are of an attempt before this one, were damaged, and will be replaced when training comes to them.
    """
    steps = sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdigit())
    for old in [found for found in steps if found <= step][:-keep]:
        directory = checkpoints / str(old)
        if keep_epochs is None or not _ends_epoch(directory, keep_epochs):
            try:
                discard(directory)
            except OSError as error:  # a reader on NFS has a file of it open: no reason to end the training
                logger.warning("%s: an old checkpoint could not be removed: %s", directory, error)


def _ends_epoch(directory: Path, every: int) -> bool:
    try:
        state = checkpoint.load_state(directory)
    except (OSError, ValueError):
        return False
    return state.update == 0 and state.epoch % every == 0
