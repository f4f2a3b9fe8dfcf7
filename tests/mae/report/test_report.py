"""The report page: its numbers are those of the files, it loads nothing, and it names what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jinja2 import Environment, nodes

from datasets.base.digests import file_digest, value_digest
from datasets.base.errors import InputError
from mae.health import Finding, Verdict
from mae.report import page, report
from mae.report.page import MOST_POINTS
from mae.report.sources import MOST_PICTURES
from mae.runs import Run
from tests.mae.report.run_files import (
    PageReader,
    bare_run,
    config,
    evaluation,
    jsonl,
    page_of,
    reading,
    write,
    write_predictions,
)

LOGISTIC = {"pretrained": 0.831, "random": 0.705, "pixels": 0.819}
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> {{ 7*7 }} $\\frac$ & co"
DATA = {
    "name": "clothes",
    "root": "/data/clothes",
    "train": 6123,
    "val": 1045,
    "classes": ["bag", "coat"],
    "faults": {"corrupt": 3, "duplicate": 12},
    "records": "/w/records/clothes-1",
}


def full_run(run: Path) -> Path:
    """Write a run with every part that a report can show."""
    bare_run(run)
    write(run, "evaluations/logistic.json", evaluation("logistic", LOGISTIC))
    write(run, "evaluations/knn.json", evaluation("knn", {"pretrained": 0.7519, "random": 0.61, "pixels": 0.6}))
    tuned = {"encoder": "finetuned", "top1": 0.872, "top5": 0.9971, "images": 1000, "features": None}
    write(run, "evaluations/finetune.json", evaluation("finetune", {}, results=[tuned], settings={"epochs": 100}))
    write(run, "data.json", DATA)
    write_predictions(run)
    return run


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    return bare_run(tmp_path / "runs" / "clothes-0123")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return full_run(tmp_path / "runs" / "clothes-0123")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PageReader]:
    """A run with every part and its page, for tests that only read them."""
    run = full_run(tmp_path_factory.mktemp("workspace") / "runs" / "clothes-0123")
    return run, page_of(run)


def headline(run: Path) -> str:
    match = re.search(r'<p class="verdict">(.*?)</p>', page_of(run).html)
    assert match
    return match[1]


def test_numbers_are_those_of_the_files(shown: tuple[Path, PageReader]) -> None:
    text = shown[1].text
    for part in [
        "logistic, top-1 83.1 %",
        "finetune, top-1 87.2 %",
        "pre-training loss, last step 0.4321",
        "Pre-trained encoder 83.1 % ± 1.2 1,000 96",  # sqrt(.831 * .169 / 1000) = 1.19 points
        "The same encoder with random weights 70.5 % ± 1.4 1,000 96",
        "Raw pixels 81.9 % ± 1.2 1,000 96",
        "Pre-trained encoder 75.2 % ± 1.4 1,000 96",
        "Fine-tuned model 87.2 % ± 1.1 99.7 % 1,000",
        "epochs 100 · checkpoint cccccccccccc · records rrrrrrrrrrrr · from evaluations/finetune.json",
        "Loss 0.987 at step 10, 0.4321 at step 30",
        "3 of 3 epochs, 30 steps",
        "Duration (h:min:s) 0:01:15",
        "500 images a second over all ranks",
        "images of 224 x 224 pixels, patches of 16",
        "6,123 for training, 1,045 for validation",
        "Classes 2: bag, coat",
        "3 corrupt, 12 duplicate",
        "All 2 images, in the order of predictions.parquet.",
        "val/bag/1.JPEG seed 7 · mask ratio 0.75 · loss 1.5 · true patch statistics: yes",
        "so the picture looks better than the model alone could make it",
        "epochs: 3",  # the resolved config
    ]:
        assert part in text, part
    assert "Training has not finished" not in text


def test_bars_are_as_long_as_the_accuracies(shown: tuple[Path, PageReader]) -> None:
    widths = [float(bar["width"]) for bar in shown[1].all("rect") if bar.get("class") in ("ours", "other")]
    assert widths == pytest.approx([87.2, 75.19, 61.0, 60.0, 83.1, 70.5, 81.9], abs=1e-3)


HEADLINES = [
    (
        "above both",
        LOGISTIC,
        50_000,
        "83.1 %",
        "12.6 points above the same encoder with random weights, 1.2 points above raw pixels",
    ),
    (
        "a small gap of few images is noise",
        LOGISTIC,
        1000,
        "83.1 %",
        "12.6 points above the same encoder with random weights, 1.2 points above raw pixels (within noise)",
    ),
    (
        "below both",
        {"pretrained": 0.60, "random": 0.701, "pixels": 0.817},
        1000,
        "60.0 %",
        "10.1 points below the same encoder with random weights, 21.7 points below raw pixels",
    ),
    (
        "level, and one is missing",
        {"pretrained": 0.8, "random": 0.8},
        1000,
        "80.0 %",
        "level with the same encoder with random weights, raw pixels not measured",
    ),
]


@pytest.mark.parametrize(("results", "images", "top1", "gaps"), [pytest.param(*c[1:], id=c[0]) for c in HEADLINES])
def test_headline(bare: Path, results: dict[str, float], images: int, top1: str, gaps: str) -> None:
    write(bare, "evaluations/knn.json", evaluation("knn", {"pretrained": 0.9, "random": 0.1}))
    write(bare, "evaluations/logistic.json", evaluation("logistic", results, images))
    assert headline(bare) == f"The pre-trained encoder reaches {top1} top-1 by the logistic protocol: {gaps}."


def test_the_headline_uses_the_best_evidence_there_is(bare: Path) -> None:
    unknown = "No result compares the encoder with an untrained one."
    assert headline(bare) == f"The training loss is 0.4321 after 3 epochs. {unknown}"
    write(bare, "evaluations/linear.json", evaluation("linear", {"pretrained": 0.5}))
    reached = "The pre-trained encoder reaches 50.0 % top-1 on 1,000 images by the linear protocol"
    assert headline(bare) == f"{reached}. {unknown}"
    write(bare, "evaluations/knn.json", evaluation("knn", {"pretrained": 0.4, "random": 0.3, "pixels": 0.3}))
    assert headline(bare).startswith("The pre-trained encoder reaches 40.0 % top-1 by the knn protocol: 10.0 points")


def test_missing_parts_are_named(bare: Path) -> None:
    text = page_of(bare).text
    for part in [
        "accuracy not run",
        "Not run: no data.json in this run",
        "The config names the shipped sample.",
        "Not run: evaluations/ has no result of classify, finetune, knn, linear, logistic.",
        "Not run: no reconstructions in this run (no predictions.parquet)",
    ]:
        assert part in text, part
    write(bare, "evaluations/logistic.json", evaluation("logistic", {"pretrained": 0.8}))
    text = page_of(bare).text
    assert "Not run: evaluations/ has no result of classify, finetune, knn, linear." in text
    assert "The same encoder with random weights not run" in text
    assert "Raw pixels not run" in text


def test_a_run_that_has_only_begun(bare: Path) -> None:
    write(bare, "metrics.jsonl", "")
    assert "Not run: metrics.jsonl holds no complete step." in page_of(bare).text
    assert headline(bare) == "The training has not logged a step yet."
    write(bare, "metrics.jsonl", jsonl(reading(10, samples_per_second=None)))
    assert "Throughput not known yet" in page_of(bare).text


@pytest.mark.parametrize(
    ("epoch", "epochs"), [(0.5, "0.5"), (2.5, "2.5"), (2.9999, "2.9999")], ids=["first", "last", "last_step"]
)
def test_an_unfinished_epoch_is_shown(bare: Path, epoch: float, epochs: str) -> None:
    write(bare, "metrics.jsonl", jsonl(reading(1, epoch=epoch / 2), reading(2, epoch=epoch)))
    text = page_of(bare).text
    assert f"Training has not finished: {epochs} of 3 epochs are logged." in text
    assert f"Length {epochs} of 3 epochs, 2 steps" in text
    assert f"after {epochs} epochs" in text


def test_images_that_are_not_square(full: Path) -> None:
    write(full, "config.yaml", config(model={"image_size": [28, 56], "patch_size": 7}))
    page = page_of(full)
    assert "images of 28 x 56 pixels, patches of 7" in page.text
    assert {image.get("class") for image in page.all("img")} == {"small"}
    write(full, "config.yaml", config(model={"image_size": [64, 128]}))
    assert not any("class" in image for image in page_of(full).all("img"))


def test_a_run_in_progress_is_judged_too(bare: Path) -> None:
    """As verdict.json does after the training."""
    assert "Health of the training" not in page_of(bare).text  # its records, which name its inputs, do not exist
    run = Run.open(bare)
    run.inputs = {"seed": 0}
    text = PageReader(report(run).path).text
    assert "Nothing found wrong" in text
    assert "Up to step 30: no reference for the loss: no earlier run of this recipe has finished" in text
    assert "From metrics.jsonl Accuracy" in text


def test_the_verdict_is_shown(bare: Path) -> None:
    figures = {"name": "data_starvation", "about": "speed", "figures": {}, "first_step": 10, "last_step": 1030}
    finding = Finding(message="waiting for batches", key="data.workers", **figures)
    judged = Verdict(run="r", step=1030, epoch=3.0, findings=[finding], band=None, expected="no reference")
    write(bare, "verdict.json", judged.model_dump_json())
    text = page_of(bare).text
    assert "data_starvation (step 10 to 1,030): waiting for batches. Key: data.workers" in text
    assert "Up to step 1,030: no reference. From verdict.json" in text
    assert "Nothing found wrong" not in text


def test_measurements_and_the_start_of_a_run_are_shown(bare: Path) -> None:
    """Logistic regression was called `linear` in logs of earlier versions."""
    lines = [
        {"kind": "evaluation", "step": 10, "epoch": 1.0, "protocol": name, "top1": top1, "images": 5000}
        for name, top1 in (("knn", 0.25), ("linear", 0.375))
    ]
    write(bare, "metrics.jsonl", jsonl(reading(10), *lines))
    write(bare, "fork.json", {"checkpoint": "/w/runs/a/checkpoints/24", "step": 24, "changed": "pretrain.blr 1 where"})
    text = page_of(bare).text
    assert "1 knn 25.0 % 5,000 1 logistic 37.5 % 5,000" in text
    assert "Started from step 24 of /w/runs/a/checkpoints/24, with pretrain.blr 1 where" in text


@pytest.mark.parametrize(("task", "phase"), [("finetune", "Fine-tuning"), ("linear", "Linear probe")])
def test_a_classifier_has_its_own_phase_and_no_reconstructions(bare: Path, task: str, phase: str) -> None:
    write(bare, "config.yaml", config(task))
    pq.write_table(pa.table({"path": ["a.png"], "class_1": ["bag"]}), bare / "predictions.parquet")
    text = page_of(bare).text
    assert f"{phase} loss and learning rate" in text
    assert "Not run: no reconstructions in this run (predictions.parquet has none)" in text


@pytest.mark.parametrize(
    ("metrics", "part", "notes"),
    [
        pytest.param(
            jsonl(reading(29), reading(30, loss=0.25)) + '{"step": 31, "lo',
            "0.25 at step 30",
            ["The last line of metrics.jsonl is incomplete"],
            id="torn_last_line",
        ),
        pytest.param(
            jsonl(reading(29), reading(30, loss=0.25)).rstrip("\n"),
            "0.25 at step 30",
            [],
            id="whole_last_line_without_newline",
        ),
        pytest.param(
            jsonl(reading(10, seconds=50), reading(20, seconds=100), reading(30, seconds=20)),
            "Duration (h:min:s) 0:02:00",  # 100 s until the kill, 20 s after it
            [],
            id="resumed_run",
        ),
    ],
)
def test_the_log_of_a_killed_run(bare: Path, metrics: str, part: str, notes: list[str]) -> None:
    write(bare, "metrics.jsonl", metrics)
    page = page_of(bare)
    assert part in page.text
    assert all(note in page.text for note in notes)
    assert ('class="notes"' in page.html) == bool(notes)


def test_results_of_earlier_versions_and_of_unknown_protocols(bare: Path) -> None:
    write(bare, "evaluations/linear.json", evaluation("linear", LOGISTIC, version=2))
    write(bare, "evaluations/shoes.json", evaluation("shoes", {"pretrained": 0.125}))
    text = page_of(bare).text
    assert "logistic Multinomial logistic regression on standardised frozen features" in text
    assert "from evaluations/linear.json" in text
    assert "top-1 by the logistic protocol" in text
    assert "has no result of classify, finetune, knn, linear." in text
    assert "shoes, top-1 12.5 %" in text


def test_a_protocol_in_a_folder_of_ones_own_is_shown_with_its_label(bare: Path, tmp_path: Path) -> None:
    """It only has to be in a folder that $MAE_PROTOCOLS names."""
    source = """\"\"\"Share of the shoes that are found.

More about it.
\"\"\"
from mae.config.sections import Section as Settings
VERSION = 1
def measure(subject, settings):
    return []
"""
    for name in ("shoes", "hats"):
        write(tmp_path, f"protocols/{name}.py", source)
    write(bare, "evaluations/shoes.json", evaluation("shoes", {"pretrained": 0.125}))
    environment = {**os.environ, "MAE_PROTOCOLS": str(tmp_path / "protocols")}
    command = [sys.executable, "-m", "mae", "report", bare.name]
    environment["PYTHONPATH"] = os.getcwd()
    done = subprocess.run(command, cwd=bare.parent, env=environment, stdout=subprocess.PIPE, check=True)
    page = PageReader(Path(json.loads(done.stdout)["path"]))
    assert "shoes, top-1 12.5 %" in page.text
    assert "shoes Share of the shoes that are found. Accuracy on the validation images" in page.text
    assert "has no result of classify, finetune, hats, knn, linear, logistic." in page.text


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        pytest.param(
            "config.yaml",
            None,
            "expected a run directory, found no config.yaml; name a directory below",
            id="no_config",
        ),
        pytest.param(
            "metrics.jsonl", None, "metrics.jsonl: expected a file of the run, found no such", id="no_metrics"
        ),
        pytest.param(
            "metrics.jsonl", jsonl(reading(1)) + "{oops\n" + jsonl(reading(2)), "line 2: expected JSON", id="mid_line"
        ),
        pytest.param(
            "metrics.jsonl", jsonl(reading(1)) + "{oops\n", "line 2: expected JSON", id="last_line_is_not_torn"
        ),
        pytest.param(
            "metrics.jsonl", jsonl(reading(1)) + "\n" + jsonl(reading(2)), "line 2: expected JSON", id="blank_line"
        ),
        pytest.param("metrics.jsonl", '{"step": 1}\n', "line 1: expected epoch: Field required", id="key_missing"),
        pytest.param("metrics.jsonl", jsonl(reading(1, loss=float("nan"))), "line 1: expected loss", id="loss_is_nan"),
        pytest.param("evaluations/logistic.json", "{", "logistic.json: expected JSON", id="evaluation_is_no_json"),
        pytest.param(
            "evaluations/logistic.json",
            evaluation("logistic", {"pretrained": 83.1}),
            "results.0.top1: Input should be less than or equal to 1, found 83.1",
            id="percent_for_a_share",
        ),
        pytest.param(
            "evaluations/knn.json", {**evaluation("knn", LOGISTIC), "version": "3"}, "expected version: ", id="version"
        ),
        pytest.param(
            "evaluations/knn.json", {**evaluation("knn", {}), "odd": 1}, "expected odd: Extra inputs", id="unknown_key"
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
        page_of(full)
    assert says in str(error.value)
    assert not (full / "report").exists()


def test_predictions_of_the_wrong_shape_are_an_input_error(full: Path) -> None:
    pq.write_table(pa.table({"path": ["a"], "image_file": ["0.png"]}), full / "predictions.parquet")
    with pytest.raises(InputError, match=r"row 1: expected seed: Field required"):
        page_of(full)


def test_the_page_loads_nothing(shown: tuple[Path, PageReader]) -> None:
    parsed = shown[1]
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


def test_pictures_are_inside_the_page(shown: tuple[Path, PageReader]) -> None:
    run, page = shown
    assert [base64.b64decode(picture["src"].split(",")[1]) for picture in page.all("img")] == [
        (run / "reconstructions" / f"{i}.png").read_bytes() for i in range(2)
    ]
    assert [picture["alt"][-14:] for picture in page.all("img")] == ["val/bag/0.JPEG", "val/bag/1.JPEG"]


def test_of_many_pictures_the_first_are_shown_and_the_rest_counted(bare: Path) -> None:
    write_predictions(bare, MOST_PICTURES + 3, true_statistics=False)
    page = page_of(bare)
    assert len(page.all("img")) == MOST_PICTURES
    assert f"The first {MOST_PICTURES} of {MOST_PICTURES + 3} images" in page.text
    assert "True patch statistics were not used" in page.text


def test_a_picture_outside_the_run_is_not_read(bare: Path) -> None:
    write_predictions(bare, 1)
    (bare / "reconstructions" / "0.png").rename(bare.parent / "secret.png")
    row = pq.read_table(bare / "predictions.parquet").to_pylist()[0]
    pq.write_table(pa.Table.from_pylist([{**row, "image_file": "../../secret.png"}]), bare / "predictions.parquet")
    with pytest.raises(InputError, match=r"reconstructions/secret\.png"):
        page_of(bare)


def test_a_long_log_becomes_a_short_curve(bare: Path) -> None:
    write(bare, "metrics.jsonl", jsonl(*(reading(i, epoch=i / 2000, loss=1 / (1 + i)) for i in range(6001))))
    page = page_of(bare)
    assert "Each point is the mean of 13 readings" in page.text  # ceil(6001 / 500)
    longest = max(len(path.get("d", "").split("L")) for path in page.all("path"))
    assert longest <= 2 * MOST_POINTS + 5  # the outline of the band


def test_hostile_names_stay_text(full: Path) -> None:
    write_predictions(full, path=HOSTILE.replace("{", "{{").replace("}", "}}"))
    write(full, "data.json", {**DATA, "classes": [HOSTILE], "root": HOSTILE, "name": HOSTILE, "faults": {HOSTILE: 1}})
    settings = {"settings": {HOSTILE: HOSTILE}, "checkpoint": HOSTILE}
    write(full, "evaluations/logistic.json", evaluation("logistic", {HOSTILE: 0.5, **LOGISTIC}, **settings))
    write(full, "evaluations/<b>&quot;%23.json", evaluation(HOSTILE, {HOSTILE: 0.5}))
    page = page_of(full)
    assert not page.all("script")
    assert len(page.all("img")) == 2
    assert not page.all("b")
    assert page.text.count(HOSTILE) >= 8
    assert "49 $" not in page.text


def test_sources_are_linked_with_their_digests(shown: tuple[Path, PageReader]) -> None:
    run, page = shown
    links = {unquote(link["href"]) for link in page.all("a")}
    files = {path for path in run.rglob("*") if path.is_file() and path.parent.name != "report"}
    assert links == {f"../{path.relative_to(run).as_posix()}" for path in files}
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in page.text


def test_accessible(shown: tuple[Path, PageReader]) -> None:
    _, page = shown
    assert page.all("html") == [{"lang": "en"}]
    assert "<title>clothes: masked-autoencoder run report</title>" in page.html
    assert all(image["alt"] for image in page.all("img"))
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
    described = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(described) == len([mark for mark in page.all("svg") if "aria-hidden" not in mark]) == 1
    assert "The loss goes from 0.987 to 0.4321." in described[0]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {section["aria-labelledby"] for section in page.all("section")} <= set(ids)


def test_the_template_only_lays_out() -> None:
    source = Path(page.__file__).with_name("page.html.j2").read_text()
    logic = (
        nodes.Compare,
        nodes.Add,
        nodes.Sub,
        nodes.Mul,
        nodes.Div,
        nodes.FloorDiv,
        nodes.Mod,
        nodes.Pow,
        nodes.Dict,
    )
    assert not list(Environment().parse(source).find_all(logic))


def test_same_inputs_same_bytes_and_reuse(full: Path) -> None:
    run = Run.open(full)
    first = report(run)
    content, written = first.path.read_bytes(), first.path.stat().st_mtime_ns
    again = report(run)
    assert (first.reused, again.reused) == (False, True)
    assert again.path.stat().st_mtime_ns == written
    assert first.digest == again.digest == hashlib.sha256(content).hexdigest()
    first.path.unlink()
    assert not report(run).reused
    assert first.path.read_bytes() == content


def test_the_page_carries_the_digest_of_its_sources(bare: Path) -> None:
    digest = value_digest({name: file_digest(bare / name) for name in ("config.yaml", "metrics.jsonl")})
    assert {"name": "inputs-digest", "content": digest} in page_of(bare).all("meta")


@pytest.mark.parametrize("change", ["input", "page"])
def test_a_changed_input_or_page_is_written_anew(full: Path, change: str) -> None:
    run = Run.open(full)
    before = report(run)
    content = before.path.read_bytes()
    if change == "input":
        write(full, "evaluations/logistic.json", evaluation("logistic", {**LOGISTIC, "pixels": 0.9}))
    else:
        before.path.write_bytes(content.replace(b"83.1 %", b"99.9 %"))
    after = report(run)
    assert not after.reused
    assert (after.digest == before.digest) == (change == "page")
    assert (after.path.read_bytes() == content) == (change == "page")
    assert [path.name for path in after.path.parent.iterdir()] == ["index.html"]
