"""Finds a model's architecture: from its weights' shapes, its file's other content and the caller's settings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Optional

import numpy as np
from pydantic import ValidationError

from datasets.base.errors import InputError
from mae.config.load import invalid, unknown_key
from mae.config.sections import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from mae.model.card import ModelCard

# Heads by width of the published ViTs (Touvron et al. 2021, Dosovitskiy et al. 2021) and of the MAE decoder.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}
CARD_SETTINGS = ("mask_ratio", "classes")  # settings that are fields of ModelCard, not of ModelConfig
SETTINGS = sorted([*ModelConfig.model_fields, *CARD_SETTINGS])
IMAGENET = MappingProxyType({"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD})
_PUBLISHED = re.compile(r"(mae_)?vit_(base|large|huge)_patch\d+(_dec512d8b)?")


class Facts(NamedTuple):
    """What a file says about its model apart from the weights. `fields` are fields of ModelConfig."""

    fields: Mapping[str, Any] = MappingProxyType({})
    kind: Optional[str] = None
    classes: Optional[list[str]] = None
    mask_ratio: Optional[float] = None


def facts_from_args(args: Mapping[str, Any]) -> Facts:
    """Return what the training arguments of upstream (in checkpoint-<N>.pth) or of timm say about the model."""
    fields: dict[str, Any] = {}
    if args.get("mean") and args.get("std"):  # timm
        fields.update(pixel_mean=args["mean"], pixel_std=args["std"])
    elif "norm_pix_loss" in args or "nb_classes" in args:  # upstream always uses ImageNet's values
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
    return Facts(fields, mask_ratio=args.get("mask_ratio"))


def fields_from_name(name: str) -> dict[str, Any]:
    """Return what the name of a file that upstream published says: `visualize` models predict plain pixels."""
    if not re.match(r"mae_(pretrain|visualize|finetuned)_", name):
        return {}
    if name.startswith("mae_visualize_"):
        return {**IMAGENET, "norm_pix_loss": False}
    return {**IMAGENET, "norm_pix_loss": True} if re.match(r"mae_pretrain_.*_full", name) else dict(IMAGENET)


def describe(
    weights: Mapping[str, np.ndarray],
    facts: Facts,
    settings: Mapping[str, Any],
    *,
    where: object,
    random_decoder: bool = False,
) -> tuple[ModelCard, tuple[int, int], list[str]]:
    """Return the card of weights that have our names, the grid of their position embedding, and what was assumed.

    The caller's settings take precedence over the file's facts, and those over the shapes. If they contradict the
    weights, `layouts.differences` finds it afterwards.

    Raises:
        InputError: the weights are not a vision transformer's, a size cannot be found, or a setting is not valid.
    """
    for name in settings:
        if name not in SETTINGS:
            raise unknown_key(f"setting {name}", name, SETTINGS)
    shown = _shown(weights, where)
    kind = source_kind = facts.kind or _kind(weights)
    if random_decoder:
        if kind != "encoder":
            expected, todo = "an encoder without decoder, to add a random one", "leave out --random-decoder"
            raise InputError(where, expected=expected, found=f"a {kind}", todo=todo)
        kind = "mae"
    given = {**facts.fields, **{name: value for name, value in settings.items() if name not in CARD_SETTINGS}}
    fields = {"decoder_embed_dim": ModelConfig().decoder_embed_dim, **shown, **given}
    assumed: list[str] = []

    def assume(name: str, value: Any, reason: str) -> Any:
        assumed.append(f"{name} {json.dumps(value)}: {reason}")
        return value

    widths = [("num_heads", "embed_dim", HEADS), ("decoder_num_heads", "decoder_embed_dim", DECODER_HEADS)]
    for name, width, published in widths if kind == "mae" else widths[:1]:
        if name not in fields:
            value = fields[width]
            if value not in published:
                found = f"weights of {width} {value}, whose shapes do not show it"
                todo = f"pass it: `mae convert SRC DST --set {name}=...`, or {name}=... in Python"
                raise InputError(where, expected=name, found=found, todo=todo)
            fields[name] = assume(name, published[value], f"as in the published models of {width} {value}")
    if kind != "mae":  # the defaults of the decoder that is not there have to fit each other, whatever the encoder is
        fields = {n: v for n, v in fields.items() if not n.startswith("decoder_") or n in facts.fields}
    elif "norm_pix_loss" not in fields:
        reason = "the file does not say (change it: --set norm_pix_loss=false)"
        fields["norm_pix_loss"] = assume("norm_pix_loss", True, reason)
    if kind == "encoder":
        fields.setdefault("pool", "cls")
    for name in IMAGENET:
        if source_kind != "mae" and name not in fields:  # all published MAEs use ImageNet's values, other ViTs differ
            reason = f"ImageNet's; many ViTs have 0.5 (change it: --set {name}=[0.5,0.5,0.5])"
            fields[name] = assume(name, IMAGENET[name], reason)
    grid, fields["image_size"] = _grid(weights["pos_embed"].shape[1] - 1, fields["patch_size"], facts, settings, where)
    mask_ratio = settings.get("mask_ratio", facts.mask_ratio)
    if kind == "mae" and mask_ratio is None:
        mask_ratio = assume("mask_ratio", 0.75, "as in the published models")
    values = {
        "kind": kind,
        "classes": settings.get("classes", facts.classes) if kind == "classifier" else None,
        "mask_ratio": mask_ratio if kind == "mae" else None,
    }
    try:
        return ModelCard.model_validate({**values, "model": ModelConfig(**fields)}), grid, assumed
    except ValidationError as error:
        raise invalid(where, error) from None


def _kind(weights: Mapping[str, np.ndarray]) -> str:
    if any(name.startswith(("decoder_", "mask_token")) for name in weights):
        return "mae"
    return "classifier" if any(name.startswith("head.") for name in weights) else "encoder"


def _shown(weights: Mapping[str, np.ndarray], where: object) -> dict[str, Any]:
    """Return the fields of ModelConfig that the shapes show."""
    ranks = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    missing = [name for name, rank in ranks.items() if name not in weights or weights[name].ndim != rank]
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
    """Return the ratio for which int(dim * ratio) is exactly `hidden`."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else float(np.nextafter(ratio, math.inf))


def _grid(
    patches: int, patch_size: int, facts: Facts, settings: Mapping[str, Any], where: object
) -> tuple[tuple[int, int], Any]:
    """Return the grid of the file's position embedding, and the requested image size.

    If the file does not say its image size, it is the requested size when that has as many patches, else a square.
    """
    own = facts.fields.get("image_size")
    asked = settings.get("image_size", own)
    side = math.isqrt(patches)
    if own is None and asked is not None and math.prod(_cells(asked, patch_size)) == patches:
        own = asked
    if own is None and side * side == patches:
        own = side * patch_size
    if own is None:
        todo = "pass it: `mae convert SRC DST --set image_size='[height, width]'`, or image_size=... in Python"
        found = f"a position embedding of {patches} patches, which is not a square"
        raise InputError(where, expected="an image size", found=found, todo=todo)
    return _cells(own, patch_size), asked if asked is not None else own


def _cells(size: Any, patch_size: int) -> tuple[int, int]:
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    if not isinstance(height, int) or not isinstance(width, int):
        todo = "correct it"
        raise InputError("image_size", expected="a number, or [height, width]", found=repr(size), todo=todo)
    return height // patch_size, width // patch_size
