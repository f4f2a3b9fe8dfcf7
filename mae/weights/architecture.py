"""Which model a file's weights are: from their shapes, what the file says besides, and what the caller tells."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Optional

import numpy as np
from pydantic import ValidationError

from datasets.base.errors import InputError
from mae.config.sections import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from mae.model.card import ModelCard

# Heads by width of the published ViTs (Touvron et al. 2021, Dosovitskiy et al. 2021) and of the MAE decoder.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}
BESIDES = ("mask_ratio", "classes")  # settings that are the card's, not ModelConfig's
IMAGENET = MappingProxyType({"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD})
_PUBLISHED = re.compile(r"(mae_)?vit_(base|large|huge)_patch\d+(_dec512d8b)?")


class Told(NamedTuple):
    """What a file says of its model beside the weights; `fields` are ModelConfig's."""

    fields: Mapping[str, Any] = MappingProxyType({})
    kind: Optional[str] = None
    classes: Optional[list[str]] = None
    mask_ratio: Optional[float] = None


class Architecture(NamedTuple):
    """The card of the model that is asked for, and the grid of the weights' own position embedding."""

    card: ModelCard
    grid: tuple[int, int]
    assumed: list[str]


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse names that are neither ModelConfig's nor of BESIDES."""
    known = [*ModelConfig.model_fields, *BESIDES]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            todo = f"did you mean {near[0]}?" if near else "remove it"
            expected = f"one of {', '.join(sorted(known))}"
            raise InputError(f"setting {name}", expected=expected, found="an unknown name", todo=todo)


def told_by_args(args: Mapping[str, Any]) -> Told:
    """What upstream's training arguments say, of which checkpoint-N.pth keeps all, or timm's."""
    fields: dict[str, Any] = {}
    if args.get("mean") and args.get("std"):  # timm's
        fields.update(pixel_mean=args["mean"], pixel_std=args["std"])
    elif "norm_pix_loss" in args or "nb_classes" in args:  # upstream's, which knows no other
        fields.update(IMAGENET)
    if "norm_pix_loss" in args:
        fields["norm_pix_loss"] = bool(args["norm_pix_loss"])
    if args.get("input_size"):
        fields["image_size"] = int(args["input_size"])
    published = _PUBLISHED.fullmatch(str(args.get("model", "")))
    if published is not None:
        fields["num_heads"] = {"base": 12, "large": 16, "huge": 16}[published[2]]
        if published[1]:
            fields["decoder_num_heads"] = 16
    return Told(fields, mask_ratio=args.get("mask_ratio"))


def told_by_name(name: str) -> dict[str, Any]:
    """What the names of upstream's published files say: those for viewing predict plain pixels."""
    if not re.match(r"mae_(pretrain|visualize|finetuned)_", name):
        return {}
    if name.startswith("mae_visualize_"):
        return {**IMAGENET, "norm_pix_loss": False}
    return {**IMAGENET, "norm_pix_loss": True} if re.match(r"mae_pretrain_.*_full", name) else dict(IMAGENET)


def describe(
    weights: Mapping[str, np.ndarray],
    told: Told,
    settings: Mapping[str, Any],
    *,
    where: object,
    random_decoder: bool = False,
) -> Architecture:
    """The model of these weights (our names).

    What the caller tells goes before what the file tells, and that before what shapes show; a contradiction is found
    when the weights are checked against the card.

    Raises:
        InputError: these are no vision transformer's weights, or a size is neither told nor known; a setting is unfit.
    """
    shown, assumed = _shown(weights, where), []
    kind = told.kind or _kind(weights)
    others = kind != "mae"  # which are normalised in several ways; every published MAE by ImageNet's values
    if random_decoder:
        if kind != "encoder":
            todo = "leave the flag out"
            raise InputError(where, expected="an encoder alone for a random decoder", found=f"a {kind}", todo=todo)
        kind = "mae"
    fields = {**shown, **told.fields, **{n: v for n, v in settings.items() if n not in BESIDES}}
    fields.setdefault("decoder_embed_dim", ModelConfig().decoder_embed_dim)
    widths = [("num_heads", "embed_dim", HEADS)]
    if kind == "mae":
        widths.append(("decoder_num_heads", "decoder_embed_dim", DECODER_HEADS))
    for name, width, published in widths:
        if name in fields:
            continue
        if fields[width] not in published:
            found = f"{width} {fields[width]}, which is none of {', '.join(map(str, published))}"
            todo = f"tell it: `mae convert SRC DST --set {name}=...`, or {name}=... in Python"
            raise InputError(where, expected=f"{name}, which no shape shows", found=found, todo=todo)
        fields[name] = published[fields[width]]
        assumed.append(f"{name} {fields[name]}: the published models' of {width} {fields[width]}")
    if kind != "mae":  # a decoder that is not there must fit its own defaults, whatever the encoder is
        fields = {n: v for n, v in fields.items() if not n.startswith("decoder_") or n in told.fields}
    elif "norm_pix_loss" not in fields:
        fields["norm_pix_loss"] = True
        assumed.append("norm_pix_loss true: the file does not say (tell it: --set norm_pix_loss=...)")
    if kind == "encoder":
        fields.setdefault("pool", "cls")
    for name in IMAGENET if others else ():
        if name not in fields:
            values = ", ".join(map(str, IMAGENET[name]))
            assumed.append(f"{name} [{values}]: ImageNet's; many ViTs have 0.5 (tell it: --set {name}=[0.5,0.5,0.5])")
    grid, size = _grid(weights["pos_embed"].shape[1] - 1, fields["patch_size"], told, settings, where)
    fields["image_size"] = size
    mask_ratio = settings.get("mask_ratio", told.mask_ratio)
    if kind == "mae" and mask_ratio is None:
        mask_ratio = 0.75
        assumed.append("mask_ratio 0.75: the published models'")
    classes = settings.get("classes", told.classes) if kind == "classifier" else None
    try:
        model = ModelConfig.model_validate(fields)
        card = ModelCard.model_validate(
            {"kind": kind, "model": model, "classes": classes, "mask_ratio": mask_ratio if kind == "mae" else None}
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if "constrained" not in str(part))  # of a union's branch
        expected, found = first["msg"], repr(first["input"])
        if first["type"] == "value_error":  # of a validator, which says itself what it expected and got
            expected, found = "sizes that fit", str(first["ctx"]["error"])
        todo = "correct what is told, or give a model that fits"
        raise InputError(f"{where}: {key}".rstrip(": "), expected=expected, found=found, todo=todo) from None
    return Architecture(card, grid, assumed)


def _kind(weights: Mapping[str, np.ndarray]) -> str:
    if any(name.startswith(("decoder_", "mask_token")) for name in weights):
        return "mae"
    return "classifier" if any(name.startswith("head.") for name in weights) else "encoder"


def _shown(weights: Mapping[str, np.ndarray], where: object) -> dict[str, Any]:
    """ModelConfig's fields that shapes show."""
    names = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    ranks = dict(zip(names, (3, 3, 4, 2)))
    missing = [name for name in names if name not in weights or weights[name].ndim != ranks[name]]
    if missing:
        found = f"no {', '.join(missing)} among {', '.join(sorted(weights)[:8]) or 'nothing'}, ..."
        todo = "give a checkpoint of facebookresearch/mae, timm, Hugging Face or this project"
        raise InputError(where, expected="a vision transformer's weights", found=found, todo=todo)
    dim, _, patch, _ = weights["patch_embed.proj.weight"].shape
    fields: dict[str, Any] = {
        "embed_dim": dim,
        "patch_size": patch,
        "depth": _depth(weights, "blocks"),
        "mlp_ratio": _ratio(len(weights["blocks.0.mlp.fc1.weight"]), dim),
    }
    if "mask_token" in weights:
        fields["decoder_embed_dim"] = weights["mask_token"].shape[-1]
        fields["decoder_depth"] = max(_depth(weights, "decoder_blocks"), 1)
        first = weights.get("decoder_blocks.0.mlp.fc1.weight")
        if first is not None and len(first) != int(fields["decoder_embed_dim"] * fields["mlp_ratio"]):
            fields["decoder_mlp_ratio"] = _ratio(len(first), fields["decoder_embed_dim"])
    head = next((name for name in ("head.1.weight", "head.weight") if name in weights), None)
    if head is not None:
        fields["num_classes"] = len(weights[head])
        fields["pool"] = "mean" if "fc_norm.weight" in weights else "cls"
        fields["head"] = "batch_norm" if head == "head.1.weight" else "linear"
    return fields


def _depth(weights: Mapping[str, np.ndarray], stack: str) -> int:
    return 1 + max((int(m[1]) for m in (re.match(rf"{stack}\.(\d+)\.", name) for name in weights) if m), default=-1)


def _ratio(hidden: int, dim: int) -> float:
    """A ratio of which int(dim * ratio) is `hidden` again."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else float(np.nextafter(ratio, math.inf))


def _grid(
    patches: int, patch_size: int, told: Told, settings: Mapping[str, Any], where: object
) -> tuple[tuple[int, int], Any]:
    """Grid of the position embedding that the file holds, and the image size that is asked for.

    A file that tells no size has a square grid; where the caller's size has as many patches, it is the file's own.
    """
    asked = settings.get("image_size", told.fields.get("image_size"))
    own = told.fields.get("image_size")
    side = math.isqrt(patches)
    if own is None and asked is not None and math.prod(_cells(asked, patch_size)) == patches:
        own = asked
    if own is None and side * side == patches:
        own = side * patch_size
    if own is None:
        todo = "tell it: `mae convert SRC DST --set image_size='[height, width]'`, or image_size=... in Python"
        found = f"a position embedding of {patches} patches, which is no square"
        raise InputError(where, expected="an image size", found=found, todo=todo)
    return _cells(own, patch_size), asked if asked is not None else own


def _cells(size: Any, patch_size: int) -> tuple[int, int]:
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    if not isinstance(height, int) or not isinstance(width, int):
        raise InputError("image_size", expected="a side, or [height, width]", found=repr(size), todo="correct it")
    return height // patch_size, width // patch_size
