"""What a checkpoint makes of single images: reconstructions of a MAE, the five likeliest classes of a classifier."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mindspore import Tensor
from PIL import Image, ImageOps, UnidentifiedImageError

from datasets.batches import resized
from datasets.stage import InputError, PathLike, StageResult, atomic_directory, atomic_write, file_digest, value_digest

from . import checkpoint
from .config import ModelConfig
from .device import setup
from .masking import ids_from_noise
from .objective import IMAGENET_MEAN, IMAGENET_STD, Classify, Reconstruct, normalise_pixels
from .restore import load_classifier, load_mae

TABLE, PICTURES = "predictions.parquet", "reconstructions"
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MASK_GREY = 127
INPUTS = "maeflow_inputs"  # key in the table's metadata: digest of what it was made from
VERSION = 1  # raise it when the same inputs give another output

logger = logging.getLogger(__name__)


class Predictions(StageResult):
    """`table` has one row per image; `pictures` is the folder of reconstructions, none for a classifier."""

    table: Path
    digest: str
    images: int
    pictures: Path | None = None


def predict(
    checkpoint_path: PathLike, images: Sequence[PathLike], out: PathLike, *, target: str = "CPU", seed: int = 0
) -> Predictions:
    """Predict every image and write `out`/predictions.parquet; of a MAE also one picture an image.

    Args:
        images: files, or folders that are searched for images.
        target: device to run on.
        seed: of the masks; image i of a call always gets the same one.

    Raises:
        InputError: there is no image, one cannot be read, or the checkpoint is none.
    """
    model_path, out = checkpoint.model_file(Path(checkpoint_path)), Path(out)
    paths = image_files(images)
    card = checkpoint.load_card(model_path)
    pictures = out / PICTURES if card.kind == "mae" else None
    inputs = value_digest([VERSION, file_digest(model_path), seed, [(str(p), file_digest(p)) for p in paths]])
    if _finished(out / TABLE, pictures, inputs):
        logger.info("%s: reusing the predictions", out / TABLE)
        return _result(out, pictures, images=len(paths), reused=True)
    setup(target, ranks=1)
    if pictures is None:
        rows = _classify(model_path, card, paths)
    else:
        rows = _reconstruct(model_path, card, paths, pictures, seed)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({INPUTS: inputs}), sink)
    atomic_write(out / TABLE, sink.getvalue().to_pybytes())
    return _result(out, pictures, images=len(rows), reused=False)


def image_files(images: Sequence[PathLike]) -> list[Path]:
    """The files among `images`, and the image files below the folders among them, in order of their names."""
    paths: list[Path] = []
    for given in map(Path, images):
        below = sorted(p for p in given.rglob("*") if p.suffix.lower() in SUFFIXES) if given.is_dir() else [given]
        if not below:
            raise InputError(given, expected="images", found="none", todo=f"use {', '.join(sorted(SUFFIXES))} files")
        paths += below
    return paths


def load_image(path: Path, config: ModelConfig) -> np.ndarray:
    """An image as evaluation sees it: RGB, upright, resized by Pillow's bicubic, centre crop; (H, W, 3) uint8."""
    try:
        with Image.open(path) as file:
            image: Image.Image = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        todo = "remove it from the call, or repair the file"
        raise InputError(path, expected="an image", found=f"{type(error).__name__}: {error}", todo=todo) from None
    size = resized(config.image_shape, config.crop_pct)
    if isinstance(size, int):
        shorter = min(image.size)
        size = int(size * image.height / shorter), int(size * image.width / shorter)
    image = image.resize(size[::-1], Image.Resampling.BICUBIC)
    height, width = config.image_shape
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def unpatchify(patches: np.ndarray, patch_size: int) -> np.ndarray:
    """Patches (L, p*p*3) of a square image -> pixels (H, W, 3); the inverse of `vit.patchify`."""
    side = math.isqrt(len(patches))
    grid = patches.reshape(side, side, patch_size, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(side * patch_size, side * patch_size, 3)


def to_pixels(normalised: np.ndarray) -> np.ndarray:
    """Normalised pixels (H, W, 3) float32 -> uint8, clipped (a plain cast would wrap round)."""
    values = (normalised * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)) * 255
    return values.round().clip(0, 255).astype(np.uint8)


def _reconstruct(
    model_path: Path, card: checkpoint.ModelCard, paths: list[Path], pictures: Path, seed: int
) -> list[dict[str, object]]:
    """Write original | masked | reconstruction of every image; returns a table row each.

    A model trained on per-patch normalised pixels predicts no brightness and no contrast: they are put back from the
    image's own patches, the removed ones too. The rows say so (`true_patch_statistics`).
    """
    model, config = load_mae(model_path), card.model
    graph = Reconstruct(model)
    graph.set_train(False)
    noise = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    with atomic_directory(pictures) as partial:
        for number, path in enumerate(paths):
            image = load_image(path, config)
            ids_keep, ids_restore = ids_from_noise(noise.random((1, model.patches)), float(card.mask_ratio or 0.75))
            outputs = graph(Tensor(image[None]), Tensor(ids_keep), Tensor(ids_restore))
            pred, removed = (output.asnumpy()[0] for output in outputs)
            target = _patches(normalise_pixels(image), config.patch_size)
            mean, spread = 0.0, 1.0
            if config.norm_pix_loss:
                mean = target.mean(1, keepdims=True)
                spread = np.sqrt(target.var(1, ddof=1, keepdims=True) + 1e-6)
            error = (((target - mean) / spread - pred) ** 2).mean(1)
            filled = np.where(removed[:, None] == 1, pred * spread + mean, target)
            grey = np.full_like(image, MASK_GREY)
            mask = unpatchify(np.repeat(removed[:, None], target.shape[1], axis=1), config.patch_size) == 1
            panels = [image, np.where(mask, grey, image), to_pixels(unpatchify(filled, config.patch_size))]
            name = f"{number:05d}_{path.stem}.png"
            Image.fromarray(np.concatenate(panels, axis=1)).save(partial / name)
            rows.append(
                {
                    "path": str(path),
                    "image_file": f"{PICTURES}/{name}",
                    "seed": seed,
                    "mask_ratio": float(removed.sum() / len(removed)),
                    "loss": float((error * removed).sum() / removed.sum()),
                    "true_patch_statistics": config.norm_pix_loss,
                }
            )
    return rows


def _classify(model_path: Path, card: checkpoint.ModelCard, paths: list[Path]) -> list[dict[str, object]]:
    """The five likeliest classes of every image with their probabilities."""
    graph = Classify(load_classifier(model_path))
    graph.set_train(False)
    rows: list[dict[str, object]] = []
    for path in paths:
        logits = graph(Tensor(load_image(path, card.model)[None])).asnumpy()[0].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        best = np.argsort(-logits)[:5]
        names = [(card.classes or [])[i] for i in best]
        rows.append({"path": str(path), "classes": names, "probabilities": [float(probabilities[i]) for i in best]})
    return rows


def _patches(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """(H, W, 3) -> (L, p*p*3), as `vit.patchify` orders them."""
    rows, columns = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
    grid = pixels.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * columns, -1)


def _finished(table: Path, pictures: Path | None, inputs: str) -> bool:
    """Whether the table was made from these inputs and its pictures are there."""
    try:
        found = pq.read_table(table)
    except (OSError, pa.ArrowException):
        return False
    if (found.schema.metadata or {}).get(INPUTS.encode()) != inputs.encode():
        return False
    return pictures is None or all((table.parent / name).is_file() for name in found["image_file"].to_pylist())


def _result(out: Path, pictures: Path | None, *, images: int, reused: bool) -> Predictions:
    table = out / TABLE
    return Predictions(table=table, digest=file_digest(table), images=images, pictures=pictures, reused=reused)
