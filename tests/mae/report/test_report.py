"""The report page: its numbers are the files' numbers, it loads nothing, and what is missing is named."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets.base.digests import file_digest, value_digest
from datasets.base.errors import InputError
from mae.config.load import dump_config, parse_config
from mae.report.page import MOST_PICTURES, MOST_POINTS, report

LINEAR = {"pretrained": 0.831, "random": 0.705, "pixels": 0.819}
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> {{ 7*7 }} $\\frac$ & co"


def step(number: int, **values: float) -> dict:
    line = {"step": number, "epoch": number / 10, "loss": 1.0, "lr": 1e-3, "samples_per_second": 500.0, "seconds": 1.0}
    return {**line, **values}


def jsonl(*steps: dict) -> str:
    return "".join(json.dumps(line) + "\n" for line in steps)


def write(run: Path, name: str, content: object) -> None:
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def config(task: str) -> str:
    recipe = {"epochs": 3, "batch_size": 8, "blr": 1e-3, "warmup_epochs": 1}
    return dump_config(parse_config({"task": task, "name": "clothes", task: recipe}, source="test"))


def evaluation(protocol: str, results: dict[str, float], images: int = 1000, /, **extra: object) -> dict:
    rows = [{"encoder": name, "top1": top1, "images": images, "features": 96} for name, top1 in results.items()]
    return {"protocol": protocol, "checkpoint": "c" * 64, "records": "r" * 12, "settings": {}, "results": rows, **extra}


def predictions(run: Path, count: int = 2, *, true_statistics: bool = True, path: str = "val/bag/{}.JPEG") -> None:
    (run / "reconstructions").mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        pixels = np.full((28, 88), i, np.uint8)
        Image.fromarray(pixels).save(run / "reconstructions" / f"{i}.png")
        rows.append({"path": path.format(i), "image_file": f"{i}.png", "seed": 7, "mask_ratio": 0.75, "loss": 0.5 + i})
    table = pa.Table.from_pylist([{**row, "true_patch_statistics": true_statistics} for row in rows])
    pq.write_table(table, run / "predictions.parquet")


DATA = {
    "name": "clothes",
    "root": "/data/clothes",
    "train": 6123,
    "val": 1045,
    "classes": ["bag", "coat"],
    "faults": {"corrupt": 3, "duplicate": 12},
    "records": "/w/records/clothes-1",
}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A run that has trained and done nothing else."""
    run = tmp_path / "clothes-0123"
    write(run, "config.yaml", config("pretrain"))
    write(
        run,
        "metrics.jsonl",
        jsonl(step(10, loss=0.987), step(20, loss=0.5, seconds=2), step(30, loss=0.4321, seconds=75)),
    )
    return run


@pytest.fixture
def full(bare: Path) -> Path:
    """A run with every part that a report can show."""
    write(bare, "evaluations/linear.json", evaluation("linear", LINEAR))
    write(bare, "evaluations/knn.json", evaluation("knn", {"pretrained": 0.7519, "random": 0.61}))
    tuned = {"encoder": "finetuned", "top1": 0.872, "top5": 0.9971, "images": 1000}
    write(bare, "evaluations/finetune.json", evaluation("finetune", {}, results=[tuned]))
    write(bare, "data.json", DATA)
    predictions(bare)
    return bare


class Page(HTMLParser):
    """Tags with attributes, ids, and the text that a reader sees (white space collapsed)."""

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


def page(run: Path) -> Page:
    return Page(report(run).path)


def sentence(run: Path) -> str:
    match = re.search(r'<p class="verdict">(.*?)</p>', report(run).path.read_text())
    assert match
    return match[1]


def test_numbers_are_those_of_the_files(full: Path) -> None:
    text = page(full).text
    for shown in [
        "Pre-trained encoder 83.1 % ± 1.2 1,000 96",  # sqrt(.831 * .169 / 1000) = 1.19 points
        "Same encoder, random weights 70.5 % ± 1.4 1,000 96",
        "Raw pixels 81.9 % ± 1.2 1,000 96",
        "Pre-trained encoder 75.2 % ± 1.4 1,000 96",
        "Fine-tuned model 87.2 % ± 1.1 99.7 % 1,000",
        "Loss 0.987 at step 10, 0.4321 at step 30",
        "3 of 3 epochs, 30 steps",
        "Duration (h:min:s) 0:01:15",
        "500 images a second over all ranks",
        "6,123 for training, 1,045 for validation",
        "Classes 2: bag, coat",
        "3 corrupt, 12 duplicate",
        "val/bag/1.JPEG seed 7 · mask ratio 0.75 · loss 1.5 · true patch statistics: yes",
        "That leaks both into the picture",
        "epochs: 3",  # the resolved config
    ]:
        assert shown in text, shown
    assert "not run" not in text.lower()


def test_bars_are_as_long_as_the_accuracies(full: Path) -> None:
    widths = [float(bar["width"]) for bar in page(full).all("rect") if bar.get("class") in ("ours", "other")]
    assert widths == pytest.approx([83.1, 70.5, 81.9, 75.19, 61.0, 87.2], abs=1e-3)


@pytest.mark.parametrize(
    ("results", "images", "expected"),
    [
        pytest.param(
            LINEAR,
            50_000,
            "The pre-trained encoder reaches 83.1 % top-1 in the linear probe: 12.6 points above the same encoder with "
            "random weights, 1.2 points above raw pixels.",
            id="above_both",
        ),
        pytest.param(
            LINEAR,
            1000,
            "The pre-trained encoder reaches 83.1 % top-1 in the linear probe: 12.6 points above the same encoder with "
            "random weights, 1.2 points above raw pixels (within noise).",
            id="small_gap_of_few_images_is_noise",
        ),
        pytest.param(
            {"pretrained": 0.60, "random": 0.701, "pixels": 0.817},
            1000,
            "The pre-trained encoder reaches 60.0 % top-1 in the linear probe: 10.1 points below the same encoder with "
            "random weights, 21.7 points below raw pixels.",
            id="below_both",
        ),
        pytest.param(
            {"pretrained": 0.8, "random": 0.8},
            1000,
            "The pre-trained encoder reaches 80.0 % top-1 in the linear probe: level with the same encoder with random "
            "weights, raw pixels not measured.",
            id="level_and_one_missing",
        ),
    ],
)
def test_verdict(bare: Path, results: dict[str, float], images: int, expected: str) -> None:
    write(bare, "evaluations/linear.json", evaluation("linear", results, images))
    assert sentence(bare) == expected


def test_verdict_without_a_linear_probe_claims_nothing_about_it(bare: Path) -> None:
    unknown = "the linear probe was not run, so nothing here compares the encoder with an untrained one."
    assert sentence(bare) == f"Training stands at loss 0.4321 after 3 epochs; {unknown}"
    write(bare, "evaluations/finetune.json", evaluation("finetune", {"finetuned": 0.5}))
    assert sentence(bare) == f"The fine-tuned model reaches 50.0 % top-1 on 1,000 images; {unknown}"


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("data.json", "Not run: no data.json in this run"),
        ("evaluations/linear.json", "Linear probe Not run: no evaluations/linear.json"),
        ("evaluations/knn.json", "Nearest neighbours (kNN) Not run: no evaluations/knn.json"),
        ("evaluations/finetune.json", "Fine-tuning Not run: no evaluations/finetune.json"),
        ("predictions.parquet", "Not run: no reconstructions in this run (no predictions.parquet)"),
    ],
)
def test_a_missing_part_is_named(full: Path, missing: str, named: str) -> None:
    (full / missing).unlink()
    assert named in page(full).text


def test_a_missing_encoder_is_named_in_the_table(bare: Path) -> None:
    write(bare, "evaluations/linear.json", evaluation("linear", {"pretrained": 0.8}))
    text = page(bare).text
    assert "Same encoder, random weights not run" in text
    assert "Raw pixels not run" in text


def test_a_run_that_has_only_begun(bare: Path) -> None:
    write(bare, "metrics.jsonl", "")
    assert "Not run: metrics.jsonl holds no complete step." in page(bare).text
    assert sentence(bare) == "Training has not logged a step yet."
    write(bare, "metrics.jsonl", jsonl(step(10, samples_per_second=None)))
    assert "Throughput not known yet" in page(bare).text


def test_a_run_so_far_is_judged_too(trained: Any, tmp_path: Path) -> None:
    """As verdict.json does at its end."""
    run = tmp_path / "runs" / trained.run_dir.name
    shutil.copytree(trained.run_dir, run)
    (run / "verdict.json").unlink()
    text = page(run).text
    assert "Nothing found wrong" in text
    assert "Up to step 48: loss compared with nothing: no earlier run of this recipe has finished" in text


def test_a_fine_tuning_run_is_called_so_and_a_classifier_has_no_reconstructions(bare: Path) -> None:
    write(bare, "config.yaml", config("finetune"))
    pq.write_table(pa.table({"path": ["a.png"], "class_1": ["bag"]}), bare / "predictions.parquet")
    text = page(bare).text
    assert "Fine-tuning loss and learning rate" in text
    assert "Not run: no reconstructions in this run (predictions.parquet holds none)" in text


@pytest.mark.parametrize(
    ("metrics", "shown", "notes"),
    [
        pytest.param(
            jsonl(step(29), step(30, loss=0.25)) + '{"step": 31, "lo',
            "0.25 at step 30",
            ["The last line of metrics.jsonl is torn"],
            id="torn_last_line",
        ),
        pytest.param(
            jsonl(step(29), step(30, loss=0.25)).rstrip("\n"),
            "0.25 at step 30",
            [],
            id="whole_last_line_without_newline",
        ),
        pytest.param(
            jsonl(step(10, seconds=50), step(20, seconds=100), step(20, loss=0.3, seconds=9), step(30, seconds=20)),
            "Duration (h:min:s) 0:02:00",  # 100 s until the kill, 20 s after it
            ["1 logged steps were run again after a restart"],
            id="resumed_run",
        ),
        pytest.param(jsonl(step(10)), "1 of 3 epochs", ["not finished: 1 of 3 epochs are logged"], id="unfinished"),
    ],
)
def test_what_a_kill_leaves_is_named(bare: Path, metrics: str, shown: str, notes: list[str]) -> None:
    write(bare, "metrics.jsonl", metrics)
    parsed = page(bare)
    assert shown in parsed.text
    assert all(note in parsed.text for note in notes)
    assert ('class="notes"' in parsed.html) == bool(notes)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        pytest.param(
            "config.yaml", None, "config.yaml: expected a file of the run, found no such file", id="no_config"
        ),
        pytest.param(
            "metrics.jsonl", None, "metrics.jsonl: expected a file of the run, found no such", id="no_metrics"
        ),
        pytest.param(
            "metrics.jsonl", jsonl(step(1)) + "{oops\n" + jsonl(step(2)), "line 2: expected JSON", id="mid_line"
        ),
        pytest.param("metrics.jsonl", jsonl(step(1)) + "{oops\n", "line 2: expected JSON", id="last_line_is_not_torn"),
        pytest.param("metrics.jsonl", jsonl(step(1)) + "\n" + jsonl(step(2)), "line 2: expected JSON", id="blank_line"),
        pytest.param("metrics.jsonl", '{"step": 1}\n', "line 1: expected epoch: Field required", id="key_missing"),
        pytest.param("metrics.jsonl", jsonl(step(1, loss=float("nan"))), "line 1: expected loss", id="loss_is_nan"),
        pytest.param("evaluations/linear.json", "{", "linear.json: expected JSON", id="evaluation_is_no_json"),
        pytest.param(
            "evaluations/linear.json",
            evaluation("linear", {"pretrained": 83.1}),
            "results.0.top1: Input should be less than or equal to 1, found 83.1",
            id="percent_for_a_share",
        ),
        pytest.param("data.json", {**DATA, "train": "many"}, "data.json: expected train", id="data"),
        pytest.param("predictions.parquet", "no parquet", "predictions.parquet: expected Parquet", id="parquet"),
        pytest.param("reconstructions/1.png", None, "1.png: expected a file of the run", id="picture_gone"),
        pytest.param("reconstructions/1.png", "<svg/>", "1.png: expected a PNG", id="picture_is_no_png"),
    ],
)
def test_faulty_files_are_input_errors(full: Path, file: str, content: object, says: str) -> None:
    if content is None:
        (full / file).unlink()
    else:
        write(full, file, content)
    with pytest.raises(InputError) as error:
        report(full)
    assert says in str(error.value)
    assert not (full / "report").exists()


def test_predictions_of_the_wrong_shape_are_an_input_error(full: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "image_file": ["0.png"]}), full / "predictions.parquet")
    with pytest.raises(InputError, match=r"row 1: expected seed: Field required"):
        report(full)


def test_a_path_that_is_no_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name a directory below <workspace>/runs"):
        report(tmp_path / "nothing")


def test_the_page_loads_nothing(full: Path) -> None:
    parsed = page(full)
    fetching = {"src", "srcset", "data", "poster", "action", "background", "xlink:href", "ping", "manifest"}
    for tag, attributes in parsed.tags:
        assert tag not in {"link", "script", "iframe", "object", "embed", "base"}
        for name, value in attributes.items():
            if name in fetching or (name == "href" and tag != "a"):
                assert value.startswith(("data:", "#")), (tag, name, value[:80])
            assert not name.startswith("on")
    assert "http://" not in parsed.html
    assert "https://" not in parsed.html
    assert "@import" not in parsed.html
    assert set(re.findall(r"url\((.)", parsed.html)) <= {"#"}
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {"http-equiv": "Content-Security-Policy", "content": policy} in parsed.all("meta")


def test_pictures_are_inside_the_page(full: Path) -> None:
    pictures = page(full).all("img")
    assert [base64.b64decode(picture["src"].split(",")[1]) for picture in pictures] == [
        (full / "reconstructions" / f"{i}.png").read_bytes() for i in range(2)
    ]
    assert [picture["alt"][-14:] for picture in pictures] == ["val/bag/0.JPEG", "val/bag/1.JPEG"]


def test_of_many_pictures_the_first_are_shown_and_the_rest_counted(bare: Path) -> None:
    predictions(bare, MOST_PICTURES + 3, true_statistics=False)
    parsed = page(bare)
    assert len(parsed.all("img")) == MOST_PICTURES
    assert f"The first {MOST_PICTURES} of {MOST_PICTURES + 3} images" in parsed.text
    assert "True patch statistics were not used" in parsed.text


def test_a_picture_outside_the_run_is_not_read(bare: Path) -> None:
    predictions(bare, 1)
    secret = bare.parent / "secret.png"
    (bare / "reconstructions" / "0.png").rename(secret)
    row = {"path": "a", "image_file": "../../secret.png", "seed": 0, "mask_ratio": 0.5, "loss": 1.0}
    pq.write_table(pa.Table.from_pylist([{**row, "true_patch_statistics": False}]), bare / "predictions.parquet")
    with pytest.raises(InputError, match=r"reconstructions/secret\.png"):
        report(bare)


def test_a_long_log_becomes_a_short_curve(bare: Path) -> None:
    write(bare, "metrics.jsonl", jsonl(*(step(i, epoch=i / 2000, loss=1 / (1 + i)) for i in range(6001))))
    parsed = page(bare)
    assert "Each point is the mean of 13 logged steps" in parsed.text  # ceil(6001 / 500)
    assert (
        max(len(path.get("d", "").split("L")) for path in parsed.all("path")) <= 2 * MOST_POINTS + 5
    )  # the band's rim


def test_hostile_names_stay_text(full: Path) -> None:
    predictions(full, path=HOSTILE.replace("{", "{{").replace("}", "}}"))
    write(full, "data.json", {**DATA, "classes": [HOSTILE], "root": HOSTILE, "name": HOSTILE, "faults": {HOSTILE: 1}})
    settings = {"settings": {HOSTILE: HOSTILE}, "checkpoint": HOSTILE}
    write(full, "evaluations/linear.json", evaluation("linear", {HOSTILE: 0.5, **LINEAR}, **settings))
    write(full, "evaluations/<b>&quot;%23.json", evaluation(HOSTILE, {HOSTILE: 0.5}))
    parsed = page(full)
    assert not parsed.all("script")
    assert len(parsed.all("img")) == 2
    assert not parsed.all("b")
    assert parsed.text.count(HOSTILE) >= 8
    assert "49 $" not in parsed.text


def test_sources_are_linked_with_their_digests(full: Path) -> None:
    parsed = page(full)
    links = {unquote(link["href"]) for link in parsed.all("a")}
    files = {path for path in full.rglob("*") if path.is_file() and path.parent.name != "report"}
    assert links == {f"../{path.relative_to(full).as_posix()}" for path in files}
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in parsed.text


def test_accessible(full: Path) -> None:
    parsed = page(full)
    assert parsed.all("html") == [{"lang": "en"}]
    assert "<title>clothes: masked-autoencoder run report</title>" in parsed.html
    assert all(image["alt"] for image in parsed.all("img"))
    assert all(header.get("scope") in ("row", "col") for header in parsed.all("th"))
    described = [attributes["aria-label"] for _, attributes in parsed.tags if attributes.get("role") == "img"]
    assert len(described) == len([mark for mark in parsed.all("svg") if "aria-hidden" not in mark]) == 1
    assert "The loss goes from 0.987 to 0.4321." in described[0]
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {section["aria-labelledby"] for section in parsed.all("section")} <= set(ids)


def test_same_inputs_same_bytes_and_reuse(full: Path) -> None:
    first = report(full)
    content, written = first.path.read_bytes(), first.path.stat().st_mtime_ns
    again = report(full)
    assert (first.reused, again.reused) == (False, True)
    assert again.path.stat().st_mtime_ns == written
    assert first.digest == again.digest == hashlib.sha256(content).hexdigest()
    first.path.unlink()
    assert not report(full).reused
    assert first.path.read_bytes() == content


def test_the_page_carries_the_digest_of_its_inputs(bare: Path) -> None:
    digest = value_digest({name: file_digest(bare / name) for name in ("config.yaml", "metrics.jsonl")})
    assert {"name": "inputs-digest", "content": digest} in page(bare).all("meta")


@pytest.mark.parametrize("change", ["input", "page"])
def test_a_changed_input_or_page_is_written_anew(full: Path, change: str) -> None:
    before = report(full)
    content = before.path.read_bytes()
    if change == "input":
        write(full, "evaluations/linear.json", evaluation("linear", {**LINEAR, "pixels": 0.9}))
    else:
        before.path.write_bytes(content.replace(b"83.1 %", b"99.9 %"))
    after = report(full)
    assert not after.reused
    assert (after.digest == before.digest) == (change == "page")
    assert (after.path.read_bytes() == content) == (change == "page")
    assert [path.name for path in after.path.parent.iterdir()] == ["index.html"]
