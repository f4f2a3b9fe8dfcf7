"""Exports a checkpoint as one file for other programs: MindIR for MindSpore and Ascend, ONNX for everything else.

The input `images` is float32 (N, 3, H, W), RGB, normalised with the pixel mean and standard deviation in the file's
metadata. The output of a pre-trained encoder is `tokens` (N, 1 + L, D) after the final norm, the output of a classifier
is `logits` (N, classes). All computations are in float32.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult
from mae.device.context import setup
from mae.export.onnx_graph import vit_graph
from mae.model.vit import Encoder
from mae.runs.checkpoint import digest_once
from mae.runs.model_file import model_file
from mae.weights.restore import load_model

MINDIR, ONNX = ".mindir", ".onnx"
CARD, SOURCE, NORMALISATION = "maeflow", "source_digest", "normalisation"  # keys of a file's metadata
TOLERANCE = 1e-4  # largest difference from the model, relative to the largest output; the order of sums differs
PROTOBUF_BYTES = 2**31 - 2**24  # of weights that fit into one ONNX file; MindSpore splits its own files from 1 GB

Compute = Callable[[np.ndarray], np.ndarray]  # images -> output, by the exported file


class Exported(StageResult):
    """The file that was written."""

    path: Path
    digest: str
    output: str  # name of the output
    input_shape: list[Optional[int]]  # none: any size
    output_shape: list[Optional[int]]
    difference: float  # largest difference from the model, relative to the largest output
    weights: list[Path]  # files that `path` refers to, if the model is too large for one file


class _Source(NamedTuple):
    """The model of a checkpoint, ready to be exported."""

    model: Encoder
    graph: nn.Cell  # images -> output
    output: str
    metadata: dict[str, str]

    def images(self, number: int) -> np.ndarray:
        shape = (number, 3, *self.model.config.image_shape)
        return np.random.default_rng(0).standard_normal(shape, np.float32)


class _Tokens(nn.Cell):
    """`Encoder.encode` as a cell."""

    def __init__(self, model: Encoder) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


def export(checkpoint_path: PathLike, out: PathLike, *, batch_size: Optional[int] = None) -> Exported:
    """Write a checkpoint's model to `out`, a .mindir or .onnx file, and compare the file's outputs with the model's.

    Args:
        checkpoint_path: model file, checkpoint directory or run directory.
        out: an existing file is replaced only if the new one agrees with the model.
        batch_size: N. None: any in ONNX, 1 in MindIR, whose shapes are static.

    Raises:
        InputError: `out` has another suffix, there is no checkpoint, the ONNX packages are missing, or the exported
            file computes other outputs than the model.
    """
    out = Path(out)
    writers = {MINDIR: _write_mindir, ONNX: _write_onnx}
    if out.suffix not in writers:
        raise InputError(out, expected="a name in .mindir or .onnx", found=repr(out.suffix), todo="rename it")
    if out.suffix == MINDIR and batch_size is None:
        batch_size = 1
    model_path = model_file(Path(checkpoint_path))
    setup("CPU", ranks=1)
    source = _load(model_path)
    images = source.images(batch_size or 2)
    expected = source.graph(Tensor(images)).asnumpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.partial-") as partial:
        # The file contains the names of its weight files, so they get their final names now, new ones for new weights.
        name = f"{out.stem}-{source.metadata[SOURCE][:12]}"
        file, run = writers[out.suffix](source, Path(partial), name, batch_size, expected.shape[1:])
        difference = _difference(run(images), expected)
        if batch_size is None:  # check another batch size too
            difference = max(difference, _difference(run(images[:1]), expected[:1]))
        if not difference <= TOLERANCE:  # also true for NaN
            found, todo = f"a relative difference of {difference:.1e}", "report it; nothing was written"
            raise InputError(out, expected=f"the model's {source.output} within {TOLERANCE}", found=found, todo=todo)
        weights = _move(file, out)
    return Exported(
        path=out,
        digest=file_digest(out),
        output=source.output,
        input_shape=[batch_size, *images.shape[1:]],
        output_shape=[batch_size, *expected.shape[1:]],
        difference=difference,
        weights=weights,
    )


def _load(path: Path) -> _Source:
    model = load_model(path)
    card, config = model.card, model.card.model
    graph, output = (model, "logits") if card.kind == "classifier" else (_Tokens(model), "tokens")
    graph.set_train(False)
    normalisation = {"mean": config.pixel_mean, "std": config.pixel_std, "of": "RGB between 0 and 1"}
    metadata = {
        CARD: card.model_dump_json(),
        SOURCE: digest_once(path),
        NORMALISATION: json.dumps(normalisation),
    }
    return _Source(model, graph, output, metadata)


def _write_mindir(
    source: _Source, folder: Path, name: str, batch_size: Optional[int], _shape: tuple[int, ...]
) -> tuple[Path, Compute]:
    def describe(model: Any) -> None:
        for key, value in source.metadata.items():
            if hasattr(model.user_info, "add"):  # a list of entries: MindSpore 2.7 with protobuf 4 or newer
                model.user_info.add(key=key, value=value)
            else:
                model.user_info[key] = value

    images = Tensor(source.images(batch_size or 1))
    ms.export(source.graph, images, file_name=str(folder / name), file_format="MINDIR", custom_func=describe)
    (file,) = folder.glob("*.mindir")  # for a large model <name>_graph.mindir, and its weights in <name>_variables/
    loaded = nn.GraphCell(ms.load(str(file)))
    return file, lambda x: loaded(Tensor(x)).asnumpy()


def _write_onnx(
    source: _Source, folder: Path, name: str, batch_size: Optional[int], shape: tuple[int, ...]
) -> tuple[Path, Compute]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        todo = "run pip install -e '.[onnx]' -c constraints.txt in the folder of maeflow, or export to .mindir"
        raise InputError(f"{name}{ONNX}", expected="onnx and onnxruntime", found=str(error), todo=todo) from None
    config, weights = source.model.config, {p.name: p.asnumpy() for p in source.model.get_parameters()}
    model = vit_graph(
        config, weights, output=source.output, shape=shape, batch_size=batch_size, metadata=source.metadata
    )
    file = folder / f"{name}{ONNX}"
    large = sum(w.nbytes for w in weights.values()) > PROTOBUF_BYTES
    onnx.save_model(model, file, save_as_external_data=large, location=f"{name}.data")
    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return file, lambda x: session.run(None, {"images": x})[0]


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _move(file: Path, out: Path) -> list[Path]:
    """Move the weight files, then the file that names them, so that a reader of `out` always finds its weights."""
    moves = {p: out.parent / p.relative_to(file.parent) for p in sorted(file.parent.rglob("*")) if p.is_file()}
    del moves[file]
    for path, final in [*moves.items(), (file, out)]:
        final.parent.mkdir(exist_ok=True)
        path.chmod(0o644)  # MindSpore makes files that only their owner can read
        with open(path, "rb") as content:
            os.fsync(content.fileno())
        path.replace(final)
    return list(moves.values())
