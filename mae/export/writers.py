"""Writes a model as a MindIR or ONNX file, and returns the file with a function that runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from datasets.base.errors import InputError
from mae.export.onnx_graph import vit_graph
from mae.model.card import ModelCard
from mae.model.vit import Encoder
from mae.runs.checkpoint import digest_once

CARD, SOURCE, NORMALISATION = "maeflow", "source_digest", "normalisation"  # keys of a file's metadata
PROTOBUF_BYTES = 2**31 - 2**24  # of weights that fit into one ONNX file; MindSpore splits its own files from 1 GB

Compute = Callable[[np.ndarray], np.ndarray]  # images float32 (N, 3, H, W) -> output


def output_of(model: Encoder) -> tuple[nn.Cell, str]:
    """Return the graph from images to the output, and the output's name."""
    graph, name = (model, "logits") if model.card.kind == "classifier" else (_Tokens(model), "tokens")
    graph.set_train(False)
    return graph, name


def metadata_of(path: Path, card: ModelCard) -> dict[str, str]:
    """Return the metadata of an exported file: the model's card, the digest of its file, and the normalisation."""
    normalisation = {"mean": card.model.pixel_mean, "std": card.model.pixel_std, "of": "RGB between 0 and 1"}
    return {CARD: card.model_dump_json(), SOURCE: digest_once(path), NORMALISATION: json.dumps(normalisation)}


class _Tokens(nn.Cell):
    """`Encoder.encode` as a cell."""

    def __init__(self, model: Encoder) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


def write_mindir(graph: nn.Cell, stem: Path, images: np.ndarray, metadata: dict[str, str]) -> tuple[Path, Compute]:
    """Write a MindIR file for batches of the shape of `images` into a folder, under a name that begins with `stem`."""

    def describe(model: Any) -> None:
        for key, value in metadata.items():
            if hasattr(model.user_info, "add"):  # a list of entries: MindSpore 2.7 with protobuf 4 or newer
                model.user_info.add(key=key, value=value)
            else:
                model.user_info[key] = value

    ms.export(graph, Tensor(images), file_name=str(stem), file_format="MINDIR", custom_func=describe)
    (file,) = stem.parent.glob("*.mindir")  # for a large model <stem>_graph.mindir, its weights in <stem>_variables/
    loaded = nn.GraphCell(ms.load(str(file)))
    return file, lambda x: loaded(Tensor(x)).asnumpy()


def write_onnx(
    model: Encoder, output: str, stem: Path, batch_size: Optional[int], shape: tuple[int, ...], metadata: dict[str, str]
) -> tuple[Path, Compute]:
    """Write <stem>.onnx for batches of `batch_size` images (None: of any size) with outputs of `shape`.

    Raises:
        InputError: onnx or onnxruntime is missing.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        todo = "run pip install -e '.[onnx]' -c .venv/constraints.txt in the folder of maeflow, or export to .mindir"
        raise InputError(f"{stem.name}.onnx", expected="onnx and onnxruntime", found=str(error), todo=todo) from None
    weights = {p.name: p.asnumpy() for p in model.get_parameters()}
    graph = vit_graph(model.config, weights, output=output, shape=shape, batch_size=batch_size, metadata=metadata)
    file = stem.with_name(f"{stem.name}.onnx")
    large = sum(w.nbytes for w in weights.values()) > PROTOBUF_BYTES
    onnx.save_model(graph, file, save_as_external_data=large, location=f"{stem.name}.data")
    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return file, lambda x: session.run(None, {"images": x})[0]
