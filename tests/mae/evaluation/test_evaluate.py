"""Protocols: the numbers are those of the data, the same input is not measured twice."""

import json
from datetime import datetime, timezone
from functools import partial

import numpy as np
import pytest

from datasets.base.errors import InputError
from mae.config.sections import ModelConfig
from mae.evaluation import Evaluation, append, evaluate, knn, logistic, read_history
from mae.evaluation.features import in_fixed_batches, pixel_features, split_features
from mae.evaluation.protocol import Features
from mae.runs.evaluations import read_evaluation

pytestmark = pytest.mark.usefixtures("in_process")  # tests/mae/test_cli.py and tests/flows start children


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluations")


@pytest.mark.parametrize("protocol", ["logistic", "knn"])
def test_frozen_features_of_three_encoders(trained, records, tiny, workspace, protocol):
    found = evaluate(trained.run_dir, records, protocol=protocol, config=tiny, workspace=workspace)
    assert found.path == trained.run_dir / "evaluations" / f"{protocol}.json"
    written = json.loads(found.path.read_text())
    assert [r["encoder"] for r in written["results"]] == ["pretrained", "random", "pixels"]
    assert [r["features"] for r in written["results"]] == [16, 16, 28 * 28 * 3]
    assert all(r["images"] == 40 for r in written["results"])
    assert written["results"][2]["top1"] > 0.4  # 20 images a class already tell much from raw pixels
    again = evaluate(trained.run_dir, records, protocol=protocol, config=tiny, workspace=workspace)
    assert again == found.model_copy(update={"reused": True})


def test_fine_tuning_measures_a_classifier(trained, records, tiny, workspace):
    found = evaluate(trained.run_dir, records, protocol="finetune", config=tiny, workspace=workspace)
    (score,) = found.results
    assert (score.encoder, score.images) == ("finetuned", 40)
    assert score.top1 <= score.top5 <= 1
    (run,) = (workspace / "runs").glob("tiny-finetune-*")
    classified = evaluate(run, records, protocol="classify", config=tiny, workspace=workspace)
    assert classified.results == found.results
    with pytest.raises(InputError, match="expected a mae or encoder checkpoint, found a classifier"):
        evaluate(run, records, protocol="logistic", config=tiny, workspace=workspace)


def test_other_settings_are_measured_again(trained, records, tiny, workspace, tmp_path):
    first = evaluate(trained.run_dir, records, protocol="knn", config=tiny, workspace=workspace, out=tmp_path)
    changed = tiny.model_copy(update={"knn": knn.Settings(neighbours=3)})
    second = evaluate(trained.run_dir, records, protocol="knn", config=changed, workspace=workspace, out=tmp_path)
    assert not first.reused
    assert not second.reused


@pytest.mark.parametrize(
    ("name", "protocol", "update", "message"),
    [
        ("unknown protocol", "lineer", {}, "expected one of classify, finetune, knn, linear, logistic"),
        ("no section", "finetune", {"finetune": None}, "a section `finetune:`"),
    ],
)
def test_what_cannot_be_measured_says_so(trained, records, tiny, workspace, name, protocol, update, message):
    config = tiny.model_copy(update=update)
    with pytest.raises(InputError, match=message):
        evaluate(trained.run_dir, records, protocol=protocol, config=config, workspace=workspace)


def blobs(count, seed, scale):
    """Two classes around (0, 0, ..) and (1, 1, ..) in features of very different size."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 2
    values = (labels[:, None] + 0.1 * rng.standard_normal((count, 4))) * scale
    return Features(values.astype(np.float32), labels)


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [(logistic, logistic.Settings()), (logistic, logistic.Settings(l2=[1e-3])), (knn, knn.Settings())],
    ids=["logistic, penalty chosen", "logistic, penalty given", "knn"],
)
def test_separable_classes_are_separated(protocol, settings):
    scale = np.array([1e-3, 1.0, 1e3, 1.0])
    train_set, val_set = blobs(200, 0, scale), blobs(50, 1, scale)
    assert (protocol.predict(train_set, val_set, settings) == val_set.labels).mean() > 0.9
    shuffled = train_set._replace(labels=np.random.default_rng(0).permutation(train_set.labels))
    assert (protocol.predict(shuffled, val_set, settings) == val_set.labels).mean() < 0.85  # no label leaks


@pytest.mark.parametrize(("size", "side"), [(28, 28), (32, 32), (64, 32), (50, 32), (224, 32)])
def test_pixels_of_large_images_are_averaged(size, side):
    config = ModelConfig(pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.5, 0.25, 1))
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    found = pixel_features(images, config).reshape(2, side, side, 3) * config.pixel_std + config.pixel_mean
    edges = [i * size // side for i in range(side)] + [size]
    for row, column in ((0, 0), (side - 1, 3), (7, side - 1)):
        block = images[:, edges[row] : edges[row + 1], edges[column] : edges[column + 1]]
        np.testing.assert_allclose(found[:, row, column], block.mean((1, 2)) / 255, atol=1e-5)


def test_a_short_last_batch_changes_nothing(records, tiny):
    seen = []
    compute = in_fixed_batches(lambda images: seen.append(len(images)) or images.reshape(len(images), -1)[:, :3])
    features = split_features(records, "val", tiny.model, compute, workers=1)
    assert features.values.shape == (40, 3)
    assert seen == [256]
    whole = split_features(records, "val", tiny.model, partial(pixel_features, config=tiny.model), workers=1)
    np.testing.assert_array_equal(whole.labels, features.labels)


def test_results_of_earlier_commits_are_read_under_todays_names(tmp_path):
    """Up to version 2, `linear` was the name of logistic regression; rows of the history had no version then."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    result = {
        "checkpoint": "c",
        "records": "r",
        "settings": {},
        "results": [{"encoder": "e", "top1": 0.5, "images": 4}],
    }
    folder = tmp_path / "history" / "evaluations"
    folder.mkdir(parents=True)
    old = {"time": datetime(2026, 1, 1, tzinfo=timezone.utc), "run": "old", "protocol": "linear", "encoder": "e"}
    row = {**old, "top1": 0.5, "top5": None, "images": 4, "checkpoint": "c", "records": "r"}
    pq.write_table(pa.Table.from_pylist([row]), folder / "20260101T000000.000000Z-old-linear.parquet")
    names = {}
    for version in (2, 3):
        path = tmp_path / f"{version}.json"
        path.write_text(json.dumps({**result, "protocol": "linear", "version": version}))
        names[version] = read_evaluation(path).protocol
        append(f"run{version}", Evaluation(path=path, protocol="linear", results=[]), tmp_path)
    assert names == {2: "logistic", 3: "linear"}
    found = read_history(tmp_path).to_pylist()
    assert [(row["run"], row["protocol"], row["version"]) for row in found] == [
        ("old", "logistic", 2),
        ("run2", "logistic", 2),
        ("run3", "linear", 3),
    ]
