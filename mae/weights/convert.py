"""Weights from and to other projects: facebookresearch/mae, timm, Hugging Face, MindFormers.

A model is read complete or not at all: every missing, unexpected or mis-shaped weight is named, and what had to be
dropped, assumed or computed anew stands in the model's card.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, atomic_directory, write_json
from mae.model.card import Conversion, ModelCard
from mae.model.pos_embed import interpolate
from mae.runs import checkpoint
from mae.runs.model_file import CONFIG, FOLDER_FILES, PREPROCESSOR, model_file
from mae.weights import hugging_face
from mae.weights.architecture import IMAGENET, Told, check_settings, describe, told_by_args, told_by_name
from mae.weights.files import WeightFile, read_file, write_file
from mae.weights.layouts import detect, differences, shapes, to_hugging_face, to_ours

OURS = "maeflow"
LAYOUTS = ("upstream", "hugging_face")  # of what is written

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model as arrays: `weights` have upstream's names and are exactly those that the card's model has."""

    card: ModelCard
    weights: dict[str, np.ndarray]


class Converted(StageResult):
    """What was written, and what the reader of it should know."""

    path: Path
    digest: str  # SHA-256 of the file, or of the folder's model file
    kind: str
    layout: str
    weights: int
    parameters: int
    assumed: list[str]
    dropped: list[str]


def read(source: PathLike, *, settings: Mapping[str, Any] | None = None, random_decoder: bool = False) -> Loaded:
    """The model in a file or folder of any layout.

    Args:
        source: .pth, .pt or .bin (torch), .safetensors, .ckpt (MindSpore), a Hugging Face folder, or a checkpoint or
            run directory of this project.
        settings: what the source cannot tell: fields of ModelConfig (num_heads, norm_pix_loss, image_size, ...),
            `mask_ratio`, `classes`. Another image_size than the source's interpolates its position embedding.
        random_decoder: put an untrained decoder on an encoder, which makes it a MAE.

    Returns:
        float32 weights; the card of one of our files as it stands, otherwise one with the conversion described.

    Raises:
        InputError: the source is unsafe, damaged or no model; a weight is missing, unexpected or mis-shaped; what the
            source cannot tell is not told; a setting is unknown.
    """
    loaded = _load(source, settings or {}, random_decoder)
    conversion = loaded.card.conversion
    if conversion is not None and conversion.layout == OURS and not settings and not random_decoder:
        return loaded._replace(card=loaded.card.model_copy(update={"conversion": conversion.earlier}))
    return loaded


def convert(
    source: PathLike,
    destination: PathLike,
    *,
    layout: Optional[str] = None,
    settings: Mapping[str, Any] | None = None,
    random_decoder: bool = False,
    overwrite: bool = False,
) -> Converted:
    """Write the model in `source` as `destination` says, with its card.

    Args:
        source, settings, random_decoder: as of `read`.
        destination: `.safetensors`, `.pth` (the state dict under `model`) or `.ckpt` (MindSpore) file; without a
            suffix a Hugging Face folder (config.json, preprocessor_config.json, model.safetensors).
        layout: names of the weights in a file: `upstream` (also timm's and ours; the default) or `hugging_face`.
        overwrite: replace what stands at `destination`. Without it only the same model may, which is then kept.

    Raises:
        InputError: as of `read`; something else stands at the destination; the layout cannot hold this model.
    """
    destination = Path(destination)
    folder = destination.is_dir() or not destination.suffix
    layout = layout or ("hugging_face" if folder else "upstream")
    if layout not in LAYOUTS or (folder and layout != "hugging_face"):
        expected = "hugging_face for a folder" if folder else f"one of {', '.join(LAYOUTS)}"
        raise InputError("layout", expected=expected, found=layout, todo="name one, or give a file's suffix")
    config = None
    loaded = _load(source, settings or {}, random_decoder)
    if layout == "hugging_face":
        config = hugging_face.config_json(loaded.card)
    reused = _stands_already(destination, loaded, overwrite=overwrite)
    if not reused:
        weights = loaded.weights
        if layout == "hugging_face":
            weights = to_hugging_face(weights, prefixed=loaded.card.kind != "encoder")
        if folder:
            with atomic_directory(destination) as partial:
                write_json(partial / CONFIG, config)
                write_json(partial / PREPROCESSOR, hugging_face.preprocessor_json(loaded.card.model))
                write_file(partial / checkpoint.MODEL, weights, loaded.card)
        else:
            write_file(destination, weights, loaded.card)
    conversion = loaded.card.conversion
    assert conversion is not None  # of _load, always
    return Converted(
        path=destination,
        digest=file_digest(destination / checkpoint.MODEL if folder else destination),
        kind=loaded.card.kind,
        layout=layout,
        weights=len(loaded.weights),
        parameters=sum(value.size for value in loaded.weights.values()),
        assumed=conversion.assumed,
        dropped=conversion.dropped,
        reused=reused,
    )


def _load(source: PathLike, settings: Mapping[str, Any], random_decoder: bool) -> Loaded:
    """A model with a card that always tells of its conversion."""
    check_settings(settings)
    path = model_file(Path(source))
    file = read_file(path)
    layout = detect(file.weights)
    found = to_ours(file.weights, layout)
    pooler = [name for name in found if name.removeprefix("vit.").startswith("pooler.")]  # behind the last token
    dropped = [*file.dropped, *(pooler if layout == "hugging_face" else [])]
    weights = {name: value for name, value in found.items() if name not in dropped}
    told, assumed = _told(path, file, layout)
    model = describe(weights, told, settings, where=path, random_decoder=random_decoder)
    card, assumed, changed = model.card, [*assumed, *model.assumed], list(file.changed)
    if card.model.grid != model.grid:
        for name in {"pos_embed", "decoder_pos_embed"} & set(weights):
            tokens = 1 + model.grid[0] * model.grid[1]
            if weights[name].ndim == 3 and weights[name].shape[:2] == (1, tokens):
                weights[name] = interpolate(weights[name], model.grid, card.model.grid)
                changed.append(f"{name}: interpolated from {_by(model.grid)} to {_by(card.model.grid)} patches")
    if random_decoder:
        weights.update(_random_decoder(card))
    elif file.card is not None:
        card = card.model_copy(update={"decoder": file.card.decoder})
    faults = differences(weights, shapes(card))
    if faults:
        expected = f"weights of this {card.kind} ({layout} names, listed under upstream's)"
        raise InputError(path, expected=expected, found=faults, todo="give a complete checkpoint of this architecture")
    assumed = [line for line in assumed if line.split()[0] not in settings]
    for line in assumed:
        logger.warning("%s: assumed %s", path, line)
    if dropped:
        logger.info("%s: left behind: %s", path, ", ".join(dropped))
    conversion = Conversion(
        source=path.name,
        sha256=file_digest(path),
        layout=layout if file.card is None else OURS,
        settings=dict(settings),
        assumed=assumed,
        changed=sorted(changed),
        dropped=sorted(dropped),
        earlier=file.card.conversion if file.card is not None else None,
    )
    if random_decoder:
        card = card.model_copy(update={"decoder": "random"})
    return Loaded(card.model_copy(update={"conversion": conversion}), weights)


def _told(path: Path, file: WeightFile, layout: str) -> tuple[Told, list[str]]:
    """What the source says of its model beside the weights, and what its layout lets assume."""
    if file.card is not None:
        card = file.card
        return Told(card.model.model_dump(), card.kind, card.classes, card.mask_ratio), []
    if layout == "hugging_face":
        beside = path.with_name(CONFIG)
        if path.name in FOLDER_FILES and beside.is_file():
            told, pixels = hugging_face.told_by(_json(beside), beside), path.with_name(PREPROCESSOR)
            if not pixels.is_file():
                return told, []
            return told._replace(fields={**told.fields, **hugging_face.told_by_preprocessor(_json(pixels), pixels)}), []
        eps = hugging_face.LAYER_NORM_EPS
        return Told({"layer_norm_eps": eps}), [f"layer_norm_eps {eps}: Hugging Face's default; there is no config.json"]
    if layout == "mindformers":
        return Told(IMAGENET), ["gelu exact: upstream's; MindFormers trains with the other (tell it: --set gelu=tanh)"]
    told = told_by_args(file.args)
    return told._replace(fields={**told_by_name(path.name), **told.fields}), []


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(path, expected="JSON", found=str(error), todo="fetch it again") from None
    if not isinstance(value, dict):
        raise InputError(path, expected="a JSON object", found=type(value).__name__, todo="fetch it again")
    return value


def _random_decoder(card: ModelCard) -> dict[str, np.ndarray]:
    """The decoder at the initialisation that seed 0 gives."""
    from mae.model.mae import seeded_mae

    fresh = {p.name: p.asnumpy() for p in seeded_mae(card.model, 0).get_parameters()}
    return {name: value for name, value in fresh.items() if name.startswith(("decoder_", "mask_token"))}


def _stands_already(destination: Path, loaded: Loaded, *, overwrite: bool) -> bool:
    """Whether this very model stands at the destination; anything else there may only be overwritten on demand."""
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return False
    try:
        found = read(destination)
        same = found.card == loaded.card and all(
            np.array_equal(value, found.weights[name]) for name, value in loaded.weights.items()
        )
    except InputError:
        same = False
    if same or overwrite:
        return same
    todo = "choose another destination, or say --overwrite"
    raise InputError(destination, expected="nothing, or this very model", found="something else", todo=todo)


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"
