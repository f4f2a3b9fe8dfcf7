"""Writes the files of a run without training, and reads the page of its report."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mae.config.load import dump_config, parse_config
from mae.report import report
from mae.runs import Run


def reading(step: int, **values: float | None) -> dict[str, Any]:
    line = {"step": step, "epoch": step / 10, "loss": 1.0, "lr": 1e-3, "samples_per_second": 500.0, "seconds": 1.0}
    return {**line, **values}


def jsonl(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def write(run: Path, name: str, content: object) -> None:
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def config(task: str = "pretrain", **sections: Any) -> str:
    recipe = {"epochs": 3, "batch_size": 8, "blr": 1e-3, "warmup_epochs": 1}
    return dump_config(parse_config({"task": task, "name": "clothes", task: recipe, **sections}, source="test"))


def bare_run(directory: Path) -> Path:
    """Write a run that has trained and nothing else."""
    write(directory, "config.yaml", config())
    lines = [reading(10, loss=0.987), reading(20, loss=0.5, seconds=2), reading(30, loss=0.4321, seconds=75)]
    write(directory, "metrics.jsonl", jsonl(*lines))
    return directory


def evaluation(protocol: str, top1s: dict[str, float], images: int = 1000, **changed: object) -> dict[str, Any]:
    rows = [{"encoder": name, "top1": top1, "images": images, "features": 96} for name, top1 in top1s.items()]
    head = {"protocol": protocol, "version": 3, "checkpoint": "c" * 64, "records": "r" * 12, "settings": {}}
    return {**head, "results": rows, "seconds": 1.5, **changed}


def write_predictions(
    run: Path, count: int = 2, *, true_statistics: bool = True, path: str = "val/bag/{}.JPEG", size: int = 28
) -> None:
    (run / "reconstructions").mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        Image.fromarray(np.full((size, 3 * size), i, np.uint8)).save(run / "reconstructions" / f"{i}.png")
        rows.append({"path": path.format(i), "image_file": f"{i}.png", "seed": 7, "mask_ratio": 0.75, "loss": 0.5 + i})
    table = pa.Table.from_pylist([{**row, "true_patch_statistics": true_statistics} for row in rows])
    pq.write_table(table, run / "predictions.parquet")


class PageReader(HTMLParser):
    """The tags of a page with their attributes, and the text that a reader sees (white space collapsed)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(self.html)
        self.close()
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag in {"td", "th", "p", "dd", "dt", "li", "text", "span", "figcaption", "h3"}:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if self.lasttag != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(run: Path) -> PageReader:
    """Write the report of a run and return its page."""
    return PageReader(report(Run.open(run)).path)
