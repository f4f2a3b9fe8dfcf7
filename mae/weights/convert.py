"""Reads and writes weights of other projects: facebookresearch/mae, timm, Hugging Face, MindFormers.

A model is read completely or not at all: an error names every missing, unexpected or mis-shaped weight. The model's
card lists what was assumed, changed or dropped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult, atomic_directory, write_json
from mae.model.card import Conversion, ModelCard
from mae.model.pos_embed import interpolate
from mae.runs.checkpoint import MODEL, digest_once
from mae.runs.model_file import CONFIG, FOLDER_FILES, PREPROCESSOR, model_file
from mae.weights import hugging_face
from mae.weights.architecture import IMAGENET, Facts, describe, facts_from_args, fields_from_name
from mae.weights.files import WeightFile, read_file, write_file
from mae.weights.layouts import detect, differences, shapes, to_hugging_face, to_ours

OURS = "maeflow"
LAYOUTS = ("upstream", "hugging_face")  # that can be written

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model as arrays: float32 `weights` under upstream's names, exactly those of the card's model."""

    card: ModelCard
    weights: dict[str, np.ndarray]


class Converted(StageResult):
    """The file or folder that was written, and what was assumed and dropped on the way."""

    path: Path
    digest: str  # SHA-256 of the file, or of the folder's model file
    kind: str
    layout: str
    weights: int  # number of tensors
    parameters: int  # number of values
    assumed: list[str]
    dropped: list[str]


def read(source: PathLike, *, settings: Mapping[str, Any] | None = None, random_decoder: bool = False) -> Loaded:
    """Return the model in a file or folder of any layout.

    The card of a file that this project wrote is returned as it is. Otherwise the card describes the conversion.

    Args:
        source: .pth, .pt or .bin (torch), .safetensors, .ckpt (MindSpore), a Hugging Face folder, or a checkpoint or
            run directory of this project.
        settings: fields of ModelConfig (num_heads, norm_pix_loss, image_size, ...), `mask_ratio` and `classes`. They
            replace what the source says. The position embedding is interpolated to another image_size.
        random_decoder: add an untrained decoder to an encoder, which makes it a MAE.

    Raises:
        InputError: the source is unsafe, damaged or not a model; a weight is missing, unexpected or mis-shaped; a size
            cannot be found in the source and is not in `settings`; a setting is unknown.
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
    """Write the model in `source` and its card to `destination`, whose suffix is the format.

    Args:
        source, settings, random_decoder: as in `read`.
        destination: a .safetensors, .pth (the state dict is under `model`) or .ckpt (MindSpore) file. Without a suffix,
            a Hugging Face folder (config.json, preprocessor_config.json, model.safetensors).
        layout: names of the weights in a file: `upstream` (also timm's and ours; the default) or `hugging_face`.
        overwrite: replace another model or file at `destination`. The same model is always kept.

    Raises:
        InputError: as in `read`; something else is at the destination; the layout cannot hold this model.
    """
    destination = Path(destination)
    folder = destination.is_dir() or not destination.suffix
    layout = layout or ("hugging_face" if folder else "upstream")
    if layout not in LAYOUTS or (folder and layout != "hugging_face"):
        expected = "hugging_face for a folder" if folder else f"one of {', '.join(LAYOUTS)}"
        raise InputError("layout", expected=expected, found=layout, todo="name one, or give a file's suffix")
    card, weights = _load(source, settings or {}, random_decoder)
    config = hugging_face.config_json(card) if layout == "hugging_face" else None
    reused = _has_model(destination, Loaded(card, weights), overwrite=overwrite)
    if not reused:
        named = weights if config is None else to_hugging_face(weights, prefixed=card.kind != "encoder")
        if folder:
            with atomic_directory(destination) as partial:
                write_json(partial / CONFIG, config)
                write_json(partial / PREPROCESSOR, hugging_face.preprocessor_json(card.model))
                write_file(partial / MODEL, named, card)
        else:
            write_file(destination, named, card)
    assert card.conversion is not None  # `_load` always sets it
    return Converted(
        path=destination,
        digest=digest_once(destination / MODEL if folder else destination),
        kind=card.kind,
        layout=layout,
        weights=len(weights),
        parameters=sum(value.size for value in weights.values()),
        assumed=card.conversion.assumed,
        dropped=card.conversion.dropped,
        reused=reused,
    )


def _load(source: PathLike, settings: Mapping[str, Any], random_decoder: bool) -> Loaded:
    """Return a model whose card always describes its conversion."""
    path = model_file(Path(source))
    file = read_file(path)
    layout = detect(file.weights)
    weights = to_ours(file.weights, layout)
    dropped = list(file.dropped)
    if layout == "hugging_face":  # a layer after the last norm that our models do not have
        dropped += [name for name in weights if name.removeprefix("vit.").startswith("pooler.")]
    weights = {name: value for name, value in weights.items() if name not in dropped}
    facts, assumed = _facts(path, file, layout)
    card, grid, more = describe(weights, facts, settings, where=path, random_decoder=random_decoder)
    changed = list(file.changed)
    if card.model.grid != grid:
        for name in {"pos_embed", "decoder_pos_embed"} & set(weights):
            if weights[name].ndim == 3 and weights[name].shape[:2] == (1, 1 + grid[0] * grid[1]):
                weights[name] = interpolate(weights[name], grid, card.model.grid)
                old, new = ("x".join(map(str, cells)) for cells in (grid, card.model.grid))
                changed.append(f"{name}: interpolated from {old} to {new} patches")
    decoder = file.card.decoder if file.card is not None else None
    if random_decoder:
        weights.update(_random_decoder(card))
        decoder = "random"
    faults = differences(weights, shapes(card))
    if faults:
        expected = f"the weights of this {card.kind} ({layout} layout; upstream's names are listed)"
        raise InputError(path, expected=expected, found=faults, todo="give a complete checkpoint of this architecture")
    assumed = [line for line in [*assumed, *more] if line.split()[0] not in settings]
    for line in assumed:
        logger.warning("%s: assumed %s", path, line)
    if dropped:
        logger.info("%s: dropped: %s", path, ", ".join(dropped))
    conversion = Conversion(
        source=path.name,
        sha256=digest_once(path),
        layout=layout if file.card is None else OURS,
        settings=dict(settings),
        assumed=assumed,
        changed=sorted(changed),
        dropped=sorted(dropped),
        earlier=file.card.conversion if file.card is not None else None,
    )
    return Loaded(card.model_copy(update={"decoder": decoder, "conversion": conversion}), weights)


def _facts(path: Path, file: WeightFile, layout: str) -> tuple[Facts, list[str]]:
    """Return what the source says about its model apart from the weights, and what its layout makes us assume."""
    if file.card is not None:
        card = file.card
        return Facts(card.model.model_dump(), card.kind, card.classes, card.mask_ratio), []
    if layout == "mindformers":
        reason = "upstream's; MindFormers trains with tanh (change it: --set gelu=tanh)"
        return Facts(IMAGENET), [f"gelu exact: {reason}"]
    if layout == "upstream":
        facts = facts_from_args(file.args)
        return facts._replace(fields={**fields_from_name(path.name), **facts.fields}), []
    config, preprocessor = path.with_name(CONFIG), path.with_name(PREPROCESSOR)
    if path.name not in FOLDER_FILES or not config.is_file():
        eps = hugging_face.LAYER_NORM_EPS
        return Facts({"layer_norm_eps": eps}), [
            f"layer_norm_eps {eps}: Hugging Face's default; there is no config.json"
        ]
    facts = hugging_face.facts_from_config(_json(config), config)
    if preprocessor.is_file():
        pixels = hugging_face.fields_from_preprocessor(_json(preprocessor), preprocessor)
        facts = facts._replace(fields={**facts.fields, **pixels})
    return facts, []


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(path, expected="JSON", found=str(error), todo="fetch it again") from None
    if not isinstance(value, dict):
        raise InputError(path, expected="a JSON object", found=type(value).__name__, todo="fetch it again")
    return value


def _random_decoder(card: ModelCard) -> dict[str, np.ndarray]:
    """Return the weights of a decoder initialised with seed 0."""
    from mae.device.context import seed_initialisers
    from mae.model.mae import MaskedAutoencoder

    seed_initialisers(0)
    fresh = {p.name: p.asnumpy() for p in MaskedAutoencoder(card.model).get_parameters()}
    return {name: value for name, value in fresh.items() if name.startswith(("decoder_", "mask_token"))}


def _has_model(destination: Path, loaded: Loaded, *, overwrite: bool) -> bool:
    """Return whether the destination already has this model.

    Raises:
        InputError: it has something else, and `overwrite` is false.
    """
    if not destination.exists() or (destination.is_dir() and not any(destination.iterdir())):
        return False
    try:
        card, weights = read(destination)
        same = card == loaded.card and all(np.array_equal(v, weights[name]) for name, v in loaded.weights.items())
    except InputError:
        same = False
    if same or overwrite:
        return same
    todo = "choose another destination, or pass --overwrite"
    raise InputError(destination, expected="nothing, or the same model", found="something else", todo=todo)
