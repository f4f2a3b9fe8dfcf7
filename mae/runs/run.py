"""`Run`: one training run, opened once and passed to everything that works on it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from pydantic import BaseModel

from datasets.base.digests import value_digest
from datasets.base.errors import InputError
from datasets.base.files import StageResult, atomic_write
from datasets.records import load_index
from mae.config.load import dump_config, load_config, parse_config, parse_overrides
from mae.config.sections import Config, PretrainConfig
from mae.runs import checkpoint, log
from mae.runs.inputs import run_inputs

if TYPE_CHECKING:
    from datasets.records.index import Index

CONFIG, FALLBACK = "config.yaml", "fallback.json"

logger = logging.getLogger(__name__)


class Fallback(BaseModel, extra="forbid"):
    """fallback.json: from step `from_step` on, the decoder is computed in float32, because of `failure`."""

    decoder: str = "float32"
    failure: str  # name of the failure's directory
    from_step: int


class Training(StageResult):
    """A finished run. `checkpoint` is the last model file, `digest` its SHA-256, `loss` the last logged loss."""

    run_dir: Path
    checkpoint: Path
    digest: str
    steps: int
    loss: float


class Run:
    """A run's folder <workspace>/runs/<name>-<digest> and everything in it.

    Open one with `Run.open(directory)`, or with `Run.of(config, workspace)` for a config whose data.records is set. The
    same config on the same records is the same run.

    Attributes:
        directory: the run's folder; it may not exist yet.
        config: the resolved config, as config.yaml has it.
        name, workspace: the folder's name, and the workspace that it is in.
        records: the directory of the records that the run trains on.
        checkpoints: the folder of the checkpoints (see `mae.runs.checkpoint`).
        metrics: metrics.jsonl (see `mae.runs.log`).
        evaluations: the folder of the results, one file per protocol (see `mae.runs.evaluations`).
    """

    def __init__(self, directory: Path, config: Config) -> None:
        self.directory, self.config = directory, config
        self.name, self.workspace = directory.name, directory.parent.parent
        self.records = Path(str(config.data.records))
        self.checkpoints, self.metrics = directory / "checkpoints", directory / log.METRICS
        self.evaluations = directory / "evaluations"

    @classmethod
    def open(cls, directory: Path) -> Run:
        """Open an existing run.

        Raises:
            InputError: it has no config.yaml, or one that is not valid.
        """
        if not (directory / CONFIG).is_file():
            todo = "name a directory below runs/ of a workspace"
            raise InputError(directory, expected="a run directory", found=f"no {CONFIG}", todo=todo)
        return cls(directory, load_config(directory / CONFIG))

    @classmethod
    def of(cls, config: Config, workspace: Path) -> Run:
        """Return the run of a config, begun or not. Its name has a digest of its inputs (see `mae.runs.inputs`).

        Raises:
            InputError: the config names no records, or its records or its initial checkpoint cannot be read.
        """
        if config.data.records is None:
            todo = "run `mae data shard` and set data.records to its output"
            raise InputError("data.records", expected="a records directory", found="none", todo=todo)
        inputs = run_inputs(config)
        run = cls(workspace / "runs" / f"{config.name}-{value_digest(inputs)}", config)
        run.inputs = inputs
        return run

    def config_of_another(self, overrides: Iterable[str] = ()) -> Config:
        """Return this run's config with overrides, for an evaluation. Its `device.python` is logged and left out.

        The folder may be somebody else's, so a program that it names is not executed.
        """
        python = self.config.device.python
        if python is not None:
            text = "%s: not using device.python %s of this run; choose an interpreter with --python or $MAE_PYTHON"
            logger.info(text, self.directory, python)
        values = self.config.model_dump(mode="json")
        values["device"]["python"] = None
        return parse_config(parse_overrides(overrides, values), source=self.directory / CONFIG)

    def write_config(self) -> None:
        """Create the folder and write config.yaml."""
        self.directory.mkdir(parents=True, exist_ok=True)
        atomic_write(self.directory / CONFIG, dump_config(self.config))

    @functools.cached_property
    def index(self) -> Index:
        """The index of these records."""
        return load_index(self.records)

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """Everything that the result depends on, by config key (see `mae.runs.inputs`)."""
        return run_inputs(self.config)

    @property
    def fallback(self) -> Optional[Fallback]:
        """The fall-back to a float32 decoder, if a failure caused one."""
        path = self.directory / FALLBACK
        return Fallback.model_validate_json(path.read_text()) if path.exists() else None

    @property
    def config_in_force(self) -> Config:
        """The config that the ranks use: after a fall-back, its decoder is computed in float32."""
        if self.fallback is None:
            return self.config
        compute = self.config.compute.model_copy(update={"decoder_float32": True})
        return self.config.model_copy(update={"compute": compute})

    def newest(self) -> Optional[Path]:
        """Return the directory of the newest intact checkpoint. A process reads each unchanged file once for this."""
        return checkpoint.newest(self.checkpoints)

    def finished(self) -> Optional[Training]:
        """Return the result of the run; none while the last epoch has no intact checkpoint."""
        newest = self.newest()
        if newest is None:
            return None
        state = checkpoint.load_state(newest)
        if state.epoch < self.config.recipe.epochs:
            return None
        model, digest = newest / checkpoint.MODEL, state.digests[checkpoint.MODEL]
        return Training(run_dir=self.directory, checkpoint=model, digest=digest, steps=state.step, loss=state.loss)

    def readings(self) -> list[log.Line]:
        """Return the readings of the training, oldest first."""
        return log.readings(log.read_lines(self.metrics))

    def measurements(self) -> list[log.Line]:
        """Return the evaluations between epochs, oldest first."""
        return log.evaluations(log.read_lines(self.metrics))

    def evaluated(self, step: int) -> bool:
        """Return whether the evaluations that are due after the last step are in the log. A kill can prevent them."""
        recipe = self.config.recipe
        if not isinstance(recipe, PretrainConfig) or not recipe.evaluation_due(step, step // recipe.epochs):
            return True
        found = {line["protocol"] for line in self.measurements() if line["step"] == step}
        return found >= set(recipe.eval_protocols)
