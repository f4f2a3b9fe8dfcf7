"""A checkpoint as one file for other programs: MindIR for MindSpore and Ascend, ONNX for everything else.

Input `images` (N, 3, H, W) float32, RGB, normalised by the model's pixel mean and standard deviation, which stand in
the file's metadata. Output of a pre-trained encoder `tokens` (N, 1 + L, D) after the final norm, of a classifier
`logits` (N, classes). All in float32.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult
from mae.device.context import setup
from mae.export.onnx_graph import vit_graph
from mae.model.vit import Encoder
from mae.runs.model_file import model_file
from mae.weights.restore import load_model

MINDIR, ONNX = ".mindir", ".onnx"
CARD, SOURCE, NORMALISATION = "maeflow", "source_digest", "normalisation"  # keys of a file's metadata
TOLERANCE = 1e-4  # largest difference from the model, relative to the largest output: sums differ in their order
PROTOBUF_BYTES = 2**31 - 2**24  # of weights that fit one file beside the nodes; MindSpore splits its own from 1 GB on


class Exported(StageResult):
    """`weights` are the files that `path` refers to, where the model is too large for one file."""

    path: Path
    digest: str
    output: str
    input_shape: list[Optional[int]]  # none: any
    output_shape: list[Optional[int]]
    difference: float  # largest from the checkpoint's model, relative to the largest output
    weights: list[Path]


class _Source(NamedTuple):
    """A checkpoint's model as it is exported."""

    model: Encoder
    graph: nn.Cell  # images -> output
    output: str
    metadata: dict[str, str]


class _Tokens(nn.Cell):
    """`Encoder.encode` as a cell of its own."""

    def __init__(self, model: Encoder) -> None:
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, images: Tensor) -> Tensor:
        return self.model.encode(images)


def export(checkpoint_path: PathLike, out: PathLike, *, batch_size: Optional[int] = None) -> Exported:
    """Write a checkpoint's model to `out`, a .mindir or .onnx file, after running what was written against the model.

    Args:
        checkpoint_path: model file, checkpoint or run directory.
        out: replaced only by an export that agrees with the model.
        batch_size: N; none leaves it free in ONNX and is 1 in MindIR, whose shapes are static.

    Raises:
        InputError: `out` has another suffix, the checkpoint is none, the ONNX packages are missing, or the exported
            file computes something else than the model.
    """
    out = Path(out)
    writers = {MINDIR: _write_mindir, ONNX: _write_onnx}
    if out.suffix not in writers:
        raise InputError(out, expected="a name in .mindir or .onnx", found=repr(out.suffix), todo="rename it")
    if out.suffix == ONNX:
        _require_onnx(out)
    elif batch_size is None:
        batch_size = 1
    model_path = model_file(Path(checkpoint_path))
    setup("CPU", ranks=1)
    source = _load(model_path)
    images = _random_images(source, batch_size or 2)
    expected = source.graph(Tensor(images)).asnumpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.partial-") as partial:
        # Files beside the graph are named in it, so they have their final names, and other ones for other weights.
        name = f"{out.stem}-{source.metadata[SOURCE][:12]}"
        file, run = writers[out.suffix](source, Path(partial), name, batch_size, expected.shape[1:])
        difference = _difference(run(images), expected)
        if batch_size is None:  # one image too, whose shapes are another batch's
            difference = max(difference, _difference(run(images[:1]), expected[:1]))
        if not difference <= TOLERANCE:  # NaN is a mismatch too
            wrong, todo = f"a relative difference of {difference:.1e}", "report it; nothing was written"
            raise InputError(out, expected=f"the model's {source.output} within {TOLERANCE}", found=wrong, todo=todo)
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
    classifies = model.card.kind == "classifier"
    graph, output = (model, "logits") if classifies else (_Tokens(model), "tokens")
    graph.set_train(False)
    config = model.card.model
    normalisation = {"mean": config.pixel_mean, "std": config.pixel_std, "of": "RGB between 0 and 1"}
    metadata = {
        CARD: model.card.model_dump_json(),
        SOURCE: file_digest(path),
        NORMALISATION: json.dumps(normalisation),
    }
    return _Source(model, graph, output, metadata)


def _write_mindir(
    source: _Source, folder: Path, name: str, batch_size: Optional[int], _shape: tuple[int, ...]
) -> tuple[Path, Callable[[np.ndarray], np.ndarray]]:
    images = Tensor(_random_images(source, batch_size or 1))

    def describe(model: object) -> None:
        for key, value in source.metadata.items():
            model.user_info[key] = value  # type: ignore[attr-defined]

    ms.export(source.graph, images, file_name=str(folder / name), file_format="MINDIR", custom_func=describe)
    (file,) = folder.glob("*.mindir")  # of a large model <name>_graph.mindir, beside <name>_variables/
    loaded = nn.GraphCell(ms.load(str(file)))
    return file, lambda x: loaded(Tensor(x)).asnumpy()


def _write_onnx(
    source: _Source, folder: Path, name: str, batch_size: Optional[int], shape: tuple[int, ...]
) -> tuple[Path, Callable[[np.ndarray], np.ndarray]]:
    import onnx
    import onnxruntime

    weights = {p.name: p.asnumpy() for p in source.model.get_parameters()}
    model = vit_graph(
        source.model.config,
        weights,
        output=source.output,
        shape=shape,
        batch_size=batch_size,
        metadata=source.metadata,
    )
    file = folder / f"{name}{ONNX}"
    large = sum(w.nbytes for w in weights.values()) > PROTOBUF_BYTES
    onnx.save_model(model, file, save_as_external_data=large, location=f"{name}.data")
    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return file, lambda x: session.run(None, {"images": x})[0]


def _require_onnx(out: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        todo = "pip install -e '.[onnx]' -c constraints.txt where maeflow lies, or export to .mindir"
        raise InputError(out, expected="onnx and onnxruntime", found=str(error), todo=todo) from None


def _random_images(source: _Source, number: int) -> np.ndarray:
    shape = (number, 3, *source.model.config.image_shape)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _move(file: Path, out: Path) -> list[Path]:
    """Move the weights, then the file that names them: who opens `out` finds all of it, the old or the new."""
    beside = sorted(p for p in file.parent.rglob("*") if p.is_file() and p != file)
    for path in beside:
        _replace(path, out.parent / path.relative_to(file.parent))
    _replace(file, out)
    return [out.parent / path.relative_to(file.parent) for path in beside]


def _replace(path: Path, final: Path) -> None:
    final.parent.mkdir(exist_ok=True)
    path.chmod(0o644)  # MindSpore makes it readable for its owner only
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    path.replace(final)
