"""Reads the files of a run that the report shows, checks their types, and notes the digest of each."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple, Optional, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from datasets.base.errors import InputError
from mae.health.verdict import FILE as VERDICT
from mae.health.verdict import Verdict, verdict
from mae.runs.data_facts import FILE as DATA
from mae.runs.data_facts import DataFacts
from mae.runs.evaluations import LAST_OLD_VERSION, EvaluationFile, current_name
from mae.runs.fork import FORK, Fork
from mae.runs.log import EVALUATION, METRICS, Entry, Measurement, Reading
from mae.runs.run import CONFIG, Run

PREDICTIONS, PICTURES = "predictions.parquet", "reconstructions"
MOST_PICTURES = 24  # a picture of a ViT-B/16 has about 0.2 MB: the page stays below 10 MB

T = TypeVar("T", bound=BaseModel)


class Picture(BaseModel, allow_inf_nan=False):
    """A row of predictions.parquet with a reconstruction, and the content of its picture's file."""

    path: str
    image_file: str
    seed: int
    mask_ratio: float
    loss: float
    true_patch_statistics: bool
    png: bytes = b""


class SourceFile(NamedTuple):
    """A file that was read. `name` is relative to the run, `digest` is its SHA-256."""

    name: str
    use: str
    digest: str


class Contents:
    """Everything in a run that its page shows. Optional attributes are none if the run does not have that file.

    Attributes:
        readings, measurements: the lines of metrics.jsonl; `torn`: the last one is incomplete.
        seconds: training time of all attempts.
        verdict: verdict.json; for a run without it, a verdict on the readings so far, if its records still exist.
        evaluations: by file name.
        pictures: the first MOST_PICTURES of `predicted` reconstructions; none: no table, or one of a classifier.
        files: all files that were read.

    Raises:
        InputError: config.yaml or metrics.jsonl is missing, or a file is not as this program writes it.
    """

    def __init__(self, run: Run) -> None:
        self.directory = run.directory
        self.files: list[SourceFile] = []
        self.config_text = self._read(CONFIG, "name, model, recipe, device").decode(errors="replace")
        self.readings: list[Reading] = []
        self.measurements: list[Measurement] = []
        self.seconds, self.torn = 0.0, False
        self._read_log()
        self.data = self._optional(DATA, "data table", DataFacts)
        self.verdict = self._optional(VERDICT, "health of the training", Verdict) or _judge(run)
        self.fork = self._optional(FORK, "start of the run", Fork)
        names = [f"evaluations/{path.name}" for path in sorted(run.evaluations.glob("*.json"))]
        self.evaluations = {name: self._check(name, self._read(name, "accuracy"), EvaluationFile) for name in names}
        self.pictures: list[Picture] = []
        self.predicted: Optional[int] = None
        if self.has(PREDICTIONS):
            self._read_pictures()

    def has(self, name: str) -> bool:
        """Return whether the run has this file."""
        return (self.directory / name).is_file()

    def _read(self, name: str, use: str, *, todo: str = "name a directory below runs/ of a workspace") -> bytes:
        if not self.has(name):
            where = self.directory / name
            raise InputError(where, expected="a file of the run", found="no such file", todo=todo)
        content = (self.directory / name).read_bytes()
        self.files.append(SourceFile(name, use, hashlib.sha256(content).hexdigest()))
        return content

    def _optional(self, name: str, use: str, model: type[T]) -> Optional[T]:
        return self._check(name, self._read(name, use), model) if self.has(name) else None

    def _check(self, where: str, text: bytes, model: type[T]) -> T:
        try:
            return model.model_validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "JSON"
            expected, found = f"{key}: {first['msg']}", repr(first["input"])[:200]
            todo = "correct it, or run the stage that writes this file again"
            raise InputError(self.directory / where, expected=expected, found=found, todo=todo) from None

    def _read_log(self) -> None:
        content = self._read(METRICS, "loss, learning rate, throughput, duration", todo="run `mae train`")
        *lines, last = content.split(b"\n")
        try:
            json.loads(last)
            lines.append(last)
        except ValueError:
            self.torn = bool(last)
        clock = 0.0
        for number, text in enumerate(lines, 1):
            where = f"{METRICS}, line {number}"
            if self._check(where, text, Entry).kind == EVALUATION:
                line = self._check(where, text, Measurement)
                name = current_name(line.protocol, LAST_OLD_VERSION)  # today's `linear` is not used between epochs
                self.measurements.append(line.model_copy(update={"protocol": name}))
                continue
            self.readings.append(self._check(where, text, Reading))
            now = self.readings[-1].seconds
            self.seconds += now - (clock if clock <= now else 0)  # a resumed run counts from 0 again
            clock = now

    def _read_pictures(self) -> None:
        todo = "run `mae predict` again"
        try:
            table = pq.read_table(pa.BufferReader(self._read(PREDICTIONS, "captions of the pictures")))
        except pa.ArrowException as error:
            where = self.directory / PREDICTIONS
            raise InputError(where, expected="Parquet", found=str(error), todo=todo) from None
        if "image_file" not in table.column_names:
            return
        self.predicted = table.num_rows
        for number, row in enumerate(table.slice(0, MOST_PICTURES).to_pylist(), 1):
            text = json.dumps(row, default=str).encode()
            picture = self._check(f"{PREDICTIONS}, row {number}", text, Picture)
            file = f"{PICTURES}/{Path(picture.image_file).name}"
            png = self._read(file, "picture", todo=todo)
            if not png.startswith(b"\x89PNG\r\n\x1a\n"):
                raise InputError(self.directory / file, expected="a PNG", found=repr(png[:8]), todo=todo)
            self.pictures.append(picture.model_copy(update={"png": png}))


def _judge(run: Run) -> Optional[Verdict]:
    try:
        return verdict(run)
    except InputError:  # without the records, the run's inputs and so its recipe's history are unknown
        return None
