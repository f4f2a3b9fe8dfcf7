"""The report of a run: one HTML page that shows the files of the run directory and loads nothing.

sources.py reads the files, `View` has what follows from them, chart.py draws, and page.html.j2 lays out.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import statistics
from datetime import timedelta
from pathlib import Path
from typing import Optional
from urllib.parse import quote

import jinja2

from datasets.base.digests import value_digest
from datasets.base.files import StageResult, atomic_write
from datasets.manifest import FAULTS, MANIFEST
from mae.config.protocols import protocol_names, protocols
from mae.health.verdict import FILE as VERDICT
from mae.health.verdict import said
from mae.report.chart import loss_chart
from mae.report.faulty_files import faulty_files
from mae.report.sources import PREDICTIONS, Contents
from mae.runs.evaluations import EvaluationFile, Score
from mae.runs.log import METRICS
from mae.runs.run import Run

MOST_POINTS = 500  # of the loss curve: about one for two pixels of the page's width
MOST_CLASSES = 20  # whose names are shown
SMALL = 100  # pixels: smaller images are enlarged without smoothing
TASKS = {"pretrain": "Pre-training", "finetune": "Fine-tuning", "linear": "Linear probe"}
OURS = {"pretrained": "pre-trained encoder", "finetuned": "fine-tuned model"}
BASELINES = {"random": "the same encoder with random weights", "pixels": "raw pixels"}
HEADLINE = "logistic"  # the protocol whose result the sentence at the top prefers


class ReportPage(StageResult):
    """The page that was written."""

    path: Path
    digest: str  # SHA-256 of the page; the page itself shows the digest of its sources


class View:
    """The content of the page: what the files have, and the texts and flags that follow from it."""

    def __init__(self, run: Run, found: Contents) -> None:
        self.run, self.found, self.config, self.recipe = run, found, run.config, run.config.recipe
        self.digest = value_digest({file.name: file.digest for file in found.files})
        views = [_protocol(*item) for item in found.evaluations.items()]
        self.protocols = sorted(views, key=lambda view: str(view["name"]))
        self.not_run = ", ".join(sorted({*protocol_names()} - {str(view["name"]) for view in views}))
        self.headline = _headline(found)
        self._add_data()
        self._add_training()
        self._add_pictures()

    def _add_data(self) -> None:
        data = self.found.data
        self.data_source = self.config.data.records or self.config.data.root or "the shipped sample"
        if data is not None:
            more = len(data.classes) - MOST_CLASSES
            self.classes = ", ".join(data.classes[:MOST_CLASSES]) + (f", and {more} more" if more > 0 else "")
            self.fault_counts = ", ".join(f"{count:,} {status}" for status, count in sorted(data.faults.items()))
            self.manifest = Path(data.records, MANIFEST)
            found = faulty_files(self.manifest, Path(data.root)) if self.manifest.is_file() else {}
            self.faults = [(name, FAULTS[name].meaning, files) for name, files in found.items()]

    def _add_training(self) -> None:
        config, readings = self.config, self.found.readings
        self.task, self.is_pretraining = TASKS[config.task], config.task == "pretrain"
        self.image_size = " x ".join(map(str, config.model.image_shape))
        self.ranks = f"{config.device.ranks} rank{'s' if config.device.ranks > 1 else ''} per server"
        judged = self.found.verdict
        self.verdict_source = VERDICT if self.found.has(VERDICT) else METRICS
        self.findings = [(said(finding), finding.key) for finding in judged.findings] if judged else []
        self.duration = str(timedelta(seconds=round(self.found.seconds)))
        self.is_unfinished = bool(readings) and readings[-1].epoch < self.recipe.epochs
        self.rates = [reading.samples_per_second for reading in readings if reading.samples_per_second]
        self.rate = statistics.median(self.rates) if self.rates else None
        self.readings_per_point = math.ceil(len(readings) / MOST_POINTS)
        self.averages = self.readings_per_point > 1
        self.chart = loss_chart(readings, self.readings_per_point) if readings else None

    def _add_pictures(self) -> None:
        pictures = self.found.pictures
        self.pictures = [(picture, base64.b64encode(picture.png).decode()) for picture in pictures]
        self.enlarges = max(self.config.model.image_shape) < SMALL
        self.no_pictures = f"{PREDICTIONS} has none" if self.found.has(PREDICTIONS) else f"no {PREDICTIONS}"
        self.shows_all = self.found.predicted == len(pictures)
        leaks = {picture.true_patch_statistics for picture in pictures}
        self.leaks, self.all_leak = True in leaks, leaks == {True}


def report(run: Run) -> ReportPage:
    """Write report/index.html of a run. An existing page with the same content is kept.

    Raises:
        InputError: config.yaml or metrics.jsonl is missing, or a file of the run is not as this program writes it.
    """
    content = _pages().get_template("page.html.j2").render(view=View(run, Contents(run))).encode()
    path = run.directory / "report" / "index.html"
    reused = path.is_file() and path.read_bytes() == content
    if not reused:
        atomic_write(path, content)
    return ReportPage(path=path, digest=hashlib.sha256(content).hexdigest(), reused=reused)


@functools.cache
def _pages() -> jinja2.Environment:
    pages = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages.filters.update(percent=_percent, epochs=_epochs, number=lambda value: f"{value:,.0f}")
    pages.filters.update(short=lambda value: f"{value:.4g}", link=lambda name: "../" + quote(name))
    return pages


def _protocol(source: str, result: EvaluationFile) -> dict[str, object]:
    """Return the result of a protocol as texts, and the lengths of each score's bar in percent."""
    module = protocols().get(result.protocol)
    scores = {score.encoder: score for score in result.results}
    top5 = any(score.top5 is not None for score in scores.values())
    features = any(score.features is not None for score in scores.values())
    rows = []
    for encoder, score in scores.items():
        value, error = 100 * score.top1, 100 * _error(score)
        cells = [f"{value:.1f} % \u00b1 {error:.1f}"]
        cells += [_percent(score.top5) if score.top5 is not None else "not measured"] * top5
        cells += [f"{score.images:,}"]
        cells += [f"{score.features:,}" if score.features is not None else ""] * features
        label = {**OURS, **BASELINES}.get(encoder)
        bar = {"bar": value, "low": max(value - error, 0), "high": min(value + error, 100)}
        lengths = {name: round(length, 3) for name, length in bar.items()}
        row = {"label": label.capitalize() if label else encoder, "ours": encoder in OURS, "cells": cells}
        rows.append({**row, **lengths})
    compares = hasattr(module, "predict")  # protocols on frozen features compare the encoder with the baselines
    inputs = {**result.settings, "checkpoint": result.checkpoint[:12], "records": result.records[:12]}
    return {
        "name": result.protocol,
        "label": ((module.__doc__ if module else None) or "").partition("\n")[0],
        "top1": next((_percent(score.top1) for score in scores.values() if score.encoder in OURS), None),
        "columns": ["Top-1", *["Top-5"] * top5, "Images", *["Features"] * features],
        "rows": rows,
        "missing": [label.capitalize() for encoder, label in BASELINES.items() if compares and encoder not in scores],
        "settings": " \u00b7 ".join(f"{key} {value}" for key, value in inputs.items()),
        "source": source,
    }


def _headline(found: Contents) -> str:
    """Return the result in one sentence, from the best evidence: a comparison with baselines, an accuracy, the loss."""
    ordered = sorted(found.evaluations.values(), key=lambda result: result.protocol != HEADLINE)
    scores = [(result.protocol, {score.encoder: score for score in result.results}) for result in ordered]
    for protocol, by_encoder in scores:
        if "pretrained" in by_encoder and by_encoder.keys() & BASELINES.keys():
            ours = by_encoder["pretrained"]
            gaps = ", ".join(_gap(ours, by_encoder.get(name), label) for name, label in BASELINES.items())
            return f"The pre-trained encoder reaches {_percent(ours.top1)} top-1 by the {protocol} protocol: {gaps}."
    unknown = "No result compares the encoder with an untrained one."
    for protocol, by_encoder in scores:
        for name, score in by_encoder.items():
            if name in OURS:
                reached = f"{_percent(score.top1)} top-1 on {score.images:,} images by the {protocol} protocol"
                return f"The {OURS[name]} reaches {reached}. {unknown}"
    if found.readings:
        last = found.readings[-1]
        return f"The training loss is {last.loss:.4g} after {_epochs(last.epoch)} epochs. {unknown}"
    return "The training has not logged a step yet."


def _gap(ours: Score, baseline: Optional[Score], label: str) -> str:
    """Compare two scores. Below two standard errors, as if measured on different images, a difference is noise."""
    if baseline is None:
        return f"{label} not measured"
    points = round(100 * (ours.top1 - baseline.top1), 1)
    if not points:
        return f"level with {label}"
    noise = " (within noise)" if abs(points) < 200 * math.hypot(_error(ours), _error(baseline)) else ""
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'} {label}{noise}"


def _error(score: Score) -> float:
    """Return the binomial standard error of top1."""
    return math.sqrt(score.top1 * (1 - score.top1) / score.images)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _epochs(epochs: float) -> str:
    return f"{epochs:.9g}"  # the log has four decimals: 799.96 of 800 epochs must not become 800
