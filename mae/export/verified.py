"""Exports a checkpoint as one file for other programs: MindIR for MindSpore and Ascend, ONNX for everything else.

The input `images` is float32 (N, 3, H, W), RGB, normalised with the pixel mean and standard deviation in the file's
metadata. The output of a pre-trained encoder is `tokens` (N, 1 + L, D) after the final norm, the output of a classifier
is `logits` (N, classes). All computations are in float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Optional

import numpy as np

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, fsync
from mae.config.sections import DeviceConfig
from mae.device.context import setup
from mae.launch.call import in_child
from mae.runs.checkpoint import digest_once
from mae.runs.model_file import model_file

MINDIR, ONNX = ".mindir", ".onnx"
TOLERANCE = 1e-4  # largest difference from the model, relative to the largest output; the order of sums differs


class Exported(StageResult):
    """The file that was written."""

    path: Path
    digest: str
    output: str  # name of the output
    input_shape: list[Optional[int]]  # none: any size
    output_shape: list[Optional[int]]
    difference: float  # largest difference from the model, relative to the largest output
    weights: list[Path]  # files that `path` refers to, if the model is too large for one file


def export(
    checkpoint: PathLike, out: PathLike, *, batch_size: Optional[int] = None, python: Optional[str] = None
) -> Exported:
    """Write a checkpoint's model to `out`, a .mindir or .onnx file, and compare the file's outputs with the model's.

    Args:
        checkpoint: model file, checkpoint directory or run directory.
        out: an existing file is replaced only if the new one agrees with the model.
        batch_size: N. None: any in ONNX, 1 in MindIR, whose shapes are static.
        python: interpreter that exports; None: $MAE_PYTHON or the current one.

    Raises:
        InputError: `out` has another suffix, there is no checkpoint, the ONNX packages are missing, or the exported
            file computes other outputs than the model.
        RanksFailed: the process that exports ended before its work was done.
    """
    out = Path(out)
    if out.suffix not in (MINDIR, ONNX):
        raise InputError(out, expected="a name in .mindir or .onnx", found=repr(out.suffix), todo="rename it")
    device = DeviceConfig(python=python)
    return in_child(_export, device, near=out.parent)(model_file(Path(checkpoint)), out, batch_size)


def _export(model_path: Path, out: Path, batch_size: Optional[int]) -> Exported:
    """Write, compare, and move the files to their places. A child process calls this."""
    from mindspore import Tensor

    from mae.export.writers import metadata_of, output_of, write_mindir, write_onnx
    from mae.weights.restore import load_model

    setup("CPU", ranks=1)
    model = load_model(model_path)
    metadata = metadata_of(model_path, model.card)
    graph, output = output_of(model)
    if out.suffix == MINDIR and batch_size is None:
        batch_size = 1
    shape = (batch_size or 2, 3, *model.config.image_shape)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    expected = graph(Tensor(images)).asnumpy()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.partial-") as partial:
        # The file contains the names of its weight files, so they get their final names now, new ones for new weights.
        stem = Path(partial) / f"{out.stem}-{digest_once(model_path)[:12]}"
        if out.suffix == MINDIR:
            file, run = write_mindir(graph, stem, images, metadata)
        else:
            file, run = write_onnx(model, output, stem, batch_size, expected.shape[1:], metadata)
        found = [(run(images), expected)]
        if batch_size is None:  # check another batch size too
            found.append((run(images[:1]), expected[:1]))
        scale = np.abs(expected).max()
        differences = [np.abs(a - b).max() / scale if a.shape == b.shape else np.inf for a, b in found]
        difference = float(np.max(differences))
        if not difference <= TOLERANCE:  # also true for NaN
            text, todo = f"a relative difference of {difference:.1e}", "report it; nothing was written"
            raise InputError(out, expected=f"the model's {output} within {TOLERANCE}", found=text, todo=todo)
        weights = _move(file, out)
    return Exported(
        path=out,
        digest=file_digest(out),
        output=output,
        input_shape=[batch_size, *images.shape[1:]],
        output_shape=[batch_size, *expected.shape[1:]],
        difference=difference,
        weights=weights,
    )


def _move(file: Path, out: Path) -> list[Path]:
    """Move the weight files, then the file that names them, so that a reader of `out` always finds its weights."""
    moves = {p: out.parent / p.relative_to(file.parent) for p in sorted(file.parent.rglob("*")) if p.is_file()}
    del moves[file]
    for path, final in [*moves.items(), (file, out)]:
        final.parent.mkdir(exist_ok=True)
        path.chmod(0o644)  # MindSpore makes files that only their owner can read
        fsync(path)
        path.replace(final)
    return list(moves.values())
