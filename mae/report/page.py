"""The report of a run: one self-contained HTML page, made of files of the run directory and of nothing else.

`report` gathers, `_read_*` check, `_verdict` says the result in words, `_loss_chart` draws, page.html.j2 lays out.
Every file is read through `_Sources`, so the page's list of sources is complete; only a run that is not finished is
judged here, with the records' and the history's help.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import statistics
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional, TypeVar
from urllib.parse import quote

import jinja2
import matplotlib.style
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets.base.digests import value_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, atomic_write
from datasets.manifest import MANIFEST
from mae.config import Config, load_config
from mae.health.verdict import FILE as VERDICT
from mae.health.verdict import Verdict, verdict
from mae.report.faulty_files import FaultExamples, fault_examples
from mae.runs.fork import FORK, Fork
from mae.runs.log import EVALUATION, KIND
from mae.runs.run import Run

MOST_PICTURES = 24  # a ViT-B/16 picture is about 0.2 MB: the page stays below 10 MB
MOST_POINTS = 500  # of the loss curve: about one for two pixels of the page's width
BASELINES = {"random": "the same encoder with random weights", "pixels": "raw pixels"}
# What matplotlib draws in; the page's style sheet says what these are in light, in dark and on paper.
COLOURS = {"#010101": "var(--muted)", "#020202": "var(--rule)", "#030303": "var(--accent)"}
MUTED, RULE, ACCENT = COLOURS
CHART_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mae",  # the same figure gives the same bytes
    "font.size": 8,
    "grid.color": RULE,
    "savefig.transparent": True,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "figure.constrained_layout.use"), True),
}
_T = TypeVar("_T", bound=BaseModel)


class Report(StageResult):
    path: Path
    digest: str  # SHA-256 of the page; that of its inputs stands in the page


class _FromFile(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Step(_FromFile):
    """One line of metrics.jsonl."""

    step: int
    epoch: float
    loss: float
    lr: float
    samples_per_second: Optional[float] = Field(
        description="images per second, all ranks together; none while compiling"
    )
    seconds: float = Field(description="since the training processes started")


class Measured(_FromFile):
    """A line of metrics.jsonl that was measured between epochs."""

    step: int
    epoch: float
    protocol: str
    top1: float = Field(ge=0, le=1)
    images: int


class Result(_FromFile):
    """Accuracy of one encoder; top1 and top5 are shares of `images`."""

    encoder: str
    top1: float = Field(ge=0, le=1)
    top5: Optional[float] = Field(None, ge=0, le=1)
    images: int = Field(gt=0)
    features: Optional[int] = None

    @property
    def error(self) -> float:  # the binomial standard error of top1
        return math.sqrt(self.top1 * (1 - self.top1) / self.images)


class Evaluation(_FromFile):
    """One file of evaluations/."""

    protocol: str
    checkpoint: str
    records: Optional[str] = None
    settings: dict[str, Any] = {}
    results: list[Result]


class Data(_FromFile):
    """data.json: what the data stages counted. `faults` maps a status to the number of files that have it."""

    name: str
    root: str
    train: int
    val: int
    classes: list[str]
    faults: dict[str, int]
    records: str


class Picture(_FromFile):
    """One row of predictions.parquet, joined by its PNG as a data URI."""

    path: str
    image_file: str
    seed: int
    mask_ratio: float
    loss: float
    true_patch_statistics: bool
    uri: str = ""


@dataclass
class Training:
    """`steps` is the course that led to the last state: of a step that ran twice, the later attempt."""

    steps: list[Step] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    seconds: float = 0.0  # over all attempts
    repeated: int = 0  # lines that a resumed run replaced
    torn: bool = False  # a kill cut the last line short


@dataclass
class _Sources:
    """Reads files of the run and keeps the SHA-256 of each."""

    run_dir: Path
    digests: dict[str, str] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        return (self.run_dir / name).is_file()

    def read(self, name: str, *, todo: str) -> bytes:
        if not self.has(name):
            raise InputError(self.run_dir / name, expected="a file of the run", found="no such file", todo=todo)
        content = (self.run_dir / name).read_bytes()
        self.digests[name] = hashlib.sha256(content).hexdigest()
        return content


def report(run_dir: PathLike) -> Report:
    """Write `<run_dir>/report/index.html`, or keep it where it already has the bytes that it would get.

    Evaluations, predictions and data.json may be absent: the page then says "not run".

    Raises:
        InputError: config.yaml or metrics.jsonl is missing, or a file of the run cannot be understood.
    """
    run_dir = Path(run_dir).resolve()
    sources = _Sources(run_dir)
    config_text = sources.read("config.yaml", todo="name a directory below <workspace>/runs").decode(errors="replace")
    config = load_config(run_dir / "config.yaml")
    training = _read_metrics(sources)
    data = _parse(sources, "data.json", Data) if sources.has("data.json") else None
    judged = _parse(sources, VERDICT, Verdict) if sources.has(VERDICT) else _so_far(run_dir, config)
    begun = _parse(sources, FORK, Fork) if sources.has(FORK) else None
    files = sorted((run_dir / "evaluations").glob("*.json"))
    evaluations = {file.stem: _parse(sources, f"evaluations/{file.name}", Evaluation) for file in files}
    pictures, predicted = _read_pictures(sources)
    steps_a_point = math.ceil(len(training.steps) / MOST_POINTS)
    page = _template().render(
        config=config,
        config_text=config_text,
        training=training,
        begun=begun,
        judged=judged,
        data=data,
        faulty=_faulty(data),
        evaluations=evaluations,
        pictures=pictures,
        predicted=predicted,
        steps_a_point=steps_a_point,
        verdict=_verdict(training, evaluations),
        loss_chart=_loss_chart(training.steps, steps_a_point) if training.steps else None,
        sources=sources,
    )
    path, content = run_dir / "report" / "index.html", page.encode()
    reused = path.is_file() and path.read_bytes() == content
    if not reused:
        atomic_write(path, content)
    return Report(path=path, digest=hashlib.sha256(content).hexdigest(), reused=reused)


def _parse(sources: _Sources, name: str, model: type[_T], *, part: str = "", text: str | bytes | None = None) -> _T:
    """Check a JSON file, or the `text` of one `part` of a file, against `model`."""
    todo = "correct it, or run the stage that writes this file again"
    try:
        return model.model_validate_json(sources.read(name, todo=todo) if text is None else text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"])
        where, found = f"{sources.run_dir / name}{part}", repr(first["input"])[:200]
        raise InputError(where, expected=f"{key or 'JSON'}: {first['msg']}", found=found, todo=todo) from None


def _read_metrics(sources: _Sources) -> Training:
    """metrics.jsonl. A killed run may leave a last line without its end: it is let go, and the page says so."""
    *lines, last = sources.read("metrics.jsonl", todo="train first: mae train").split(b"\n")
    training, clock = Training(), 0.0
    try:
        json.loads(last)
        lines.append(last)
    except ValueError:
        training.torn = bool(last)
    for number, text in enumerate(lines, 1):
        if _kind(text) == EVALUATION:
            training.measured.append(_parse(sources, "metrics.jsonl", Measured, part=f", line {number}", text=text))
            continue
        step = _parse(sources, "metrics.jsonl", Step, part=f", line {number}", text=text)
        while training.steps and training.steps[-1].step >= step.step:
            training.steps.pop()
            training.repeated += 1
        training.seconds += step.seconds - (clock if clock <= step.seconds else 0)  # resumed runs count from zero again
        clock = step.seconds
        training.steps.append(step)
    return training


def _kind(text: bytes) -> Any:
    """What a line says it is; lines that cannot be read are named by who reads them."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line.get(KIND) if isinstance(line, dict) else None


def _faulty(data: Data | None) -> list[FaultExamples]:
    """Files that validation found fault with, where the records' manifest is still there."""
    manifest = Path(data.records, MANIFEST) if data is not None else None
    if data is None or manifest is None or not manifest.is_file():
        return []
    return fault_examples(manifest, Path(data.root))


def _read_pictures(sources: _Sources) -> tuple[list[Picture], int | None]:
    """The first MOST_PICTURES reconstructions and how many there are: None where nothing reconstructed images."""
    name, todo = "predictions.parquet", "run mae predict again"
    if not sources.has(name):
        return [], None
    try:
        table = pq.read_table(pa.BufferReader(sources.read(name, todo=todo)))
    except pa.ArrowException as error:
        raise InputError(sources.run_dir / name, expected="Parquet", found=str(error), todo=todo) from None
    if "image_file" not in table.column_names:  # a classifier's predictions
        return [], None
    pictures = []
    for number, row in enumerate(table.slice(0, MOST_PICTURES).to_pylist(), 1):
        picture = _parse(sources, name, Picture, part=f", row {number}", text=json.dumps(row, default=str))
        file = f"reconstructions/{Path(picture.image_file).name}"
        png = sources.read(file, todo=todo)
        if not png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise InputError(sources.run_dir / file, expected="a PNG", found=repr(png[:8]), todo=todo)
        pictures.append(picture.model_copy(update={"uri": f"data:image/png;base64,{base64.b64encode(png).decode()}"}))
    return pictures, table.num_rows


def _so_far(run_dir: Path, config: Config) -> Optional[Verdict]:
    """The verdict on a run that goes on or has failed; none where records or checkpoint, its beginning, are gone."""
    try:
        return verdict(Run(run_dir, config))
    except InputError:
        return None


def _verdict(training: Training, evaluations: dict[str, Evaluation]) -> str:
    """The result in one sentence, from the best evidence there is: linear probe, fine-tuning, loss."""
    linear = {result.encoder: result for result in evaluations["linear"].results} if "linear" in evaluations else {}
    if "pretrained" in linear:
        ours = linear["pretrained"]
        gaps = ", ".join(_gap(ours, linear.get(name), label) for name, label in BASELINES.items())
        return f"The pre-trained encoder reaches {_percent(ours.top1)} top-1 in the linear probe: {gaps}."
    unknown = "the linear probe was not run, so nothing here compares the encoder with an untrained one"
    if "finetune" in evaluations and evaluations["finetune"].results:
        tuned = evaluations["finetune"].results[0]
        return f"The fine-tuned model reaches {_percent(tuned.top1)} top-1 on {tuned.images:,} images; {unknown}."
    if training.steps:
        last = training.steps[-1]
        return f"Training stands at loss {last.loss:.4g} after {last.epoch:.4g} epochs; {unknown}."
    return "Training has not logged a step yet."


def _gap(ours: Result, baseline: Result | None, label: str) -> str:
    """Noise is less than two standard errors of a difference, as if the two had been measured on different images."""
    if baseline is None:
        return f"{label} not measured"
    points = round(100 * (ours.top1 - baseline.top1), 1)
    if not points:
        return f"level with {label}"
    noise = " (within noise)" if abs(points) < 200 * math.hypot(ours.error, baseline.error) else ""
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'} {label}{noise}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _loss_chart(steps: list[Step], steps_a_point: int) -> Markup:
    """Loss above learning rate, against epochs: an SVG that takes its fonts and colours from the page."""
    values = np.array([(step.epoch, step.lr, step.loss) for step in steps])
    groups = np.split(values, range(steps_a_point, len(values), steps_a_point))
    means = [(*group.mean(axis=0), group[:, 2].min(), group[:, 2].max()) for group in groups]
    epoch, lr, loss, lowest, highest = np.transpose(means)
    with matplotlib.style.context(["default", CHART_STYLE]):
        figure = Figure(figsize=(8, 3.6))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.fill_between(epoch, lowest, highest, color=ACCENT, alpha=0.2, linewidth=0)
        upper.plot(epoch, loss, color=ACCENT, linewidth=1.2, marker="o" if len(groups) == 1 else None)
        upper.text(epoch[-1], loss[-1], f"\u00a0{steps[-1].loss:.4g}", va="center", color=ACCENT)
        upper.set(ylabel="loss")
        lower.plot(epoch, lr, color=MUTED, linewidth=1)
        lower.set(xlabel="epoch", ylabel="lr", yticks=[0, max(lr)], yticklabels=["0", f"{max(lr):.2g}"])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r"(?s).*<svg .*?(viewBox=.*?) xmlns.*?>", r"<svg \1>", buffer.getvalue())  # nothing but the drawing
    return Markup(re.sub("|".join(COLOURS), lambda match: COLOURS[match.group()], svg))


def _template() -> jinja2.Template:
    pages = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages.filters.update(percent=_percent, median=statistics.median, link=lambda name: "../" + quote(name))
    pages.filters.update(duration=lambda seconds: str(timedelta(seconds=round(seconds))), digest=value_digest)
    return pages.get_template("page.html.j2")
