"""Exported models, run by onnxruntime and by MindSpore without our code, compared with the checkpoint's model."""

import json
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.train.mind_ir_pb2 import ModelProto

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from mae.config.sections import ComputeConfig, ModelConfig
from mae.device.context import setup
from mae.export import export, onnx_graph, writers
from mae.model.card import ModelCard
from mae.model.mae import MaskedAutoencoder
from mae.model.vit import VisionTransformer
from mae.runs import checkpoint
from mae.runs.model_file import load_card
from tests.mae.command_line import mae
from tests.mae.made_weights import SMALL

SIZES = {**SMALL, "image_size": (12, 20), "patch_size": 4}
TOLERANCE = 1e-5
CASES = [  # name, kind, what differs from a published model
    ("MAE encoder", "mae", {}),
    ("MAE encoder, tanh GELU", "mae", {"gelu": "tanh"}),
    ("MAE encoder, Hugging Face's eps", "mae", {"layer_norm_eps": 1e-12}),
    ("encoder without decoder", "encoder", {"pool": "cls"}),
    ("mean pooling", "classifier", {}),
    ("cls token", "classifier", {"pool": "cls", "gelu": "tanh"}),
    ("Hugging Face's classifier", "classifier", {"pool": "cls", "layer_norm_eps": 1e-12}),
    ("linear probe", "classifier", {"pool": "cls", "head": "batch_norm"}),
    ("mean pooling, batch norm, square", "classifier", {"head": "batch_norm", "image_size": 12}),
]


pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(autouse=True)
def _cpu():
    setup("CPU", ranks=1)


def saved(folder, kind, changes, compute=None):
    """Write a checkpoint in which all weights are random, so that each affects the output; return model and file."""
    config, compute = ModelConfig(**{**SIZES, **changes}), compute or ComputeConfig()
    classes = [f"class {i}" for i in range(5)] if kind == "classifier" else None
    if kind == "mae":
        model = MaskedAutoencoder(config, compute=compute)
    else:
        model = VisionTransformer(config, len(classes or []), compute=compute)
    rng = np.random.default_rng(0)
    for p in model.get_parameters():
        if p.name.endswith("running_var"):
            p.set_data(Tensor(rng.uniform(0.5, 2, p.shape).astype(np.float32)))
        elif p.dtype == ms.float32:
            values = p.asnumpy() + 0.2 * rng.standard_normal(p.shape)
            p.set_data(Tensor(values.astype(np.float32)))
    card = ModelCard(kind=kind, model=config, classes=classes)
    weights = {p.name: p.asnumpy() for p in model.get_parameters()}
    checkpoint.save(folder / "1", weights, card, moments={}, step=1, epoch=1, loss=0.0)
    model.set_train(False)
    return model, folder / "1" / checkpoint.MODEL


def random_images(model, number, seed=7):
    shape = (number, 3, *model.config.image_shape)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outputs_of(model, images):
    has_head = any(p.name.startswith("head.") for p in model.get_parameters())
    run = model if has_head else model.encode
    return run(Tensor(images)).asnumpy()


@pytest.mark.parity
@pytest.mark.parametrize(("name", "kind", "changes"), CASES)
def test_onnx_equals_the_model_at_any_batch(tmp_path, name, kind, changes):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model, path = saved(tmp_path, kind, changes)
    found = export(path, tmp_path / "model.onnx")
    assert found.input_shape == [None, 3, *model.config.image_shape], name
    assert found.difference <= TOLERANCE
    session = ort.InferenceSession(found.path)
    for number in (1, 3):
        images = random_images(model, number)
        (result,) = session.run([found.output], {"images": images})
        np.testing.assert_allclose(result, outputs_of(model, images), rtol=0, atol=TOLERANCE, err_msg=name)


def test_mindir_runs_in_a_process_without_our_code(tmp_path):
    cases = CASES[:1] + CASES[3:5] + CASES[7:8]
    shallow = {"depth": 1}  # the other tests have two blocks
    models = [saved(tmp_path / str(n), kind, {**changes, **shallow}) for n, (_, kind, changes) in enumerate(cases)]
    found = [export(path, path.parent / "model.mindir", batch_size=3).path for _, path in models]
    images = random_images(models[0][0], 3)
    for (name, *_), (model, _), result in zip(cases, models, run_alone(found, images), strict=True):
        np.testing.assert_allclose(result, outputs_of(model, images), rtol=0, atol=TOLERANCE, err_msg=name)


def run_alone(paths, images):
    """Return the outputs of MindIR files from a process that cannot import this project."""
    folder = paths[0].parent
    np.save(folder / "images.npy", images)
    code = (
        "import sys, numpy as np, mindspore as ms\n"
        "ms.set_context(mode=ms.GRAPH_MODE, device_target='CPU')\n"
        "images = ms.Tensor(np.load('images.npy'))\n"
        "graphs = [ms.nn.GraphCell(ms.load(path)) for path in sys.argv[1:]]\n"
        "np.savez('results.npz', *[graph(images).asnumpy() for graph in graphs])\n"
        "assert 'mae' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", code, *map(str, paths)]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=120)
    with np.load(folder / "results.npz") as results:
        return list(results.values())


@pytest.mark.parity
@pytest.mark.parametrize("suffix", [".onnx", ".mindir"])
def test_a_large_model_has_its_weights_in_another_file(tmp_path, monkeypatch, suffix):
    """As with more than 2 GB (ONNX) or 1 GB (MindIR), here with lower limits."""
    monkeypatch.setattr(writers, "PROTOBUF_BYTES", 0)
    monkeypatch.setattr("mindspore.train.serialization.TOTAL_SAVE", 0)
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    model, path = saved(tmp_path, "classifier", {})
    images = random_images(model, 1)
    (tmp_path / "out").mkdir()
    for _ in range(2):  # the second time it replaces the first
        found = export(path, tmp_path / "out" / f"model{suffix}")
    if suffix == ".onnx":
        (result,) = pytest.importorskip("onnxruntime").InferenceSession(found.path).run(None, {"images": images})
    else:
        (result,) = run_alone([found.path], images)
    np.testing.assert_allclose(result, outputs_of(model, images), rtol=0, atol=TOLERANCE)
    assert len(found.weights) == 1
    assert found.weights[0].stat().st_size > found.path.stat().st_size / 10
    assert not list((tmp_path / "out").glob("*.partial-*"))


def metadata_of(path):
    if path.suffix == ".mindir":
        model = ModelProto()
        model.ParseFromString(path.read_bytes())
        info = model.user_info
        return {entry.key: entry.value for entry in info} if hasattr(info, "add") else dict(info)
    return {p.key: p.value for p in pytest.importorskip("onnx").load(path).metadata_props}


@pytest.mark.parity
@pytest.mark.parametrize("suffix", [".onnx", ".mindir"])
def test_the_metadata_describes_the_model(tmp_path, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    pixels = {"pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.5, 0.25, 1)}
    _, path = saved(tmp_path, "classifier", pixels)
    metadata = metadata_of(export(path, tmp_path / f"model{suffix}", batch_size=2).path)
    assert ModelCard.model_validate_json(metadata["maeflow"]) == load_card(path)
    assert metadata["source_digest"] == file_digest(path)
    normalisation = json.loads(metadata["normalisation"])
    assert (normalisation["mean"], normalisation["std"]) == ([0.5, 0.4, 0.3], [0.5, 0.25, 1])


@pytest.mark.parity
def test_half_precision_models_export_in_float32(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    _, path = saved(tmp_path, "mae", {}, ComputeConfig(dtype="float16"))
    graph = onnx.load(export(path, tmp_path / "model.onnx", batch_size=2).path).graph
    assert {t.data_type for t in graph.initializer} == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [2, 3, 12, 20]
    exported = ModelProto()
    exported.ParseFromString(export(path, tmp_path / "model.mindir").path.read_bytes())
    half = 10  # TensorProto.FLOAT16 of both formats
    tensors = [t for n in exported.graph.node for a in n.attribute for t in a.tensors]
    assert tensors
    assert half not in {t.data_type for t in [*tensors, *exported.graph.parameter]}


@pytest.mark.parity
def test_onnx_holds_each_weight_once_and_no_decoder(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, path = saved(tmp_path, "mae", {})
    graph = onnx.load(export(path, tmp_path / "model.onnx").path).graph
    held = sum(np.prod(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    encoder = [p for p in model.get_parameters() if not p.name.startswith(("decoder_", "mask_token", "cls_token"))]
    assert held == pytest.approx(sum(p.size for p in encoder), abs=5)  # and a few constants of the formulas
    assert {kind: sum(n.op_type == kind for n in graph.node) for kind in ("Transpose", "LayerNormalization")} == {
        "Transpose": 1 + 4 * 2,
        "LayerNormalization": 5,
    }


@pytest.mark.parity
@pytest.mark.parametrize("suffix", [".onnx", ".mindir"])
def test_a_mismatch_is_an_error_and_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        right = onnx_graph._Graph.gelu
        monkeypatch.setattr(
            onnx_graph._Graph, "gelu", lambda self, x, config: self.node("Relu", right(self, x, config))
        )
    else:  # another graph is exported than the model's
        right = ms.export
        wrong = VisionTransformer(ModelConfig(**SIZES), 5)
        monkeypatch.setattr(ms, "export", lambda _graph, *a, **k: right(wrong, *a, **k))
    _, path = saved(tmp_path, "classifier", {})
    out = tmp_path / f"model{suffix}"
    out.write_text("the earlier export")
    with pytest.raises(InputError, match=r"expected the model's logits within 0.0001, found a relative difference"):
        export(path, out)
    assert out.read_text() == "the earlier export"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", out.name]


def test_missing_packages_are_named(tmp_path, monkeypatch):
    _, path = saved(tmp_path, "mae", {})
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[onnx\]'"):
        export(path, tmp_path / "model.onnx")
    assert export(path, tmp_path / "model.mindir").output == "tokens"


def test_other_suffixes_are_rejected(tmp_path):
    with pytest.raises(InputError, match=r"model\.pb: expected a name in \.mindir or \.onnx"):
        export(tmp_path, tmp_path / "model.pb")


def test_command(tmp_path, monkeypatch):
    saved(tmp_path, "mae", {})
    monkeypatch.chdir(tmp_path)
    printed = mae("export", "1", "model.mindir", "--batch-size", 2).result
    assert (printed["output"], printed["input_shape"]) == ("tokens", [2, 3, 12, 20])
    assert printed["output_shape"] == [2, 1 + 3 * 5, 16]
    assert file_digest(tmp_path / "model.mindir") == printed["digest"]
