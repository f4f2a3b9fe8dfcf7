"""Reads and writes config.json and preprocessor_config.json of Hugging Face's ViT and ViTMAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets.base.errors import InputError
from mae.config.sections import ModelConfig
from mae.model.card import ModelCard
from mae.weights.architecture import IMAGENET, Facts

KINDS = {
    "ViTMAEForPreTraining": "mae",
    "ViTForImageClassification": "classifier",
    "ViTModel": "encoder",
    "ViTMAEModel": "encoder",
}
LAYER_NORM_EPS = 1e-12  # transformers' default; upstream and timm use 1e-6
_GELU = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
_FIELDS = {  # our key: theirs
    "image_size": "image_size",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "layer_norm_eps": "layer_norm_eps",
}
_DECODER_FIELDS = {
    "decoder_embed_dim": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_num_heads": "decoder_num_attention_heads",
    "norm_pix_loss": "norm_pix_loss",
}
_DEFAULTS: dict[str, Any] = {  # of transformers' ViTConfig and ViTMAEConfig, for keys that config.json does not have
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": LAYER_NORM_EPS,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "norm_pix_loss": False,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "num_channels": 3,
}


def facts_from_config(config: Mapping[str, Any], where: object) -> Facts:
    """Return what config.json says about the model.

    Raises:
        InputError: the model is not a ViT or a ViTMAE, or uses an option that ours does not have.
    """
    values = {**_DEFAULTS, **config}
    names = config.get("architectures") or []
    patch = values["patch_size"]
    patch = patch[0] if isinstance(patch, (list, tuple)) and len(set(patch)) == 1 else patch
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    for key, found, right, expected in (
        ("model_type", config.get("model_type"), config.get("model_type") in ("vit", "vit_mae"), "vit or vit_mae"),
        ("architectures", names, not names or names[0] in KINDS, f"one of {', '.join(KINDS)}"),
        ("hidden_act", values["hidden_act"], values["hidden_act"] in _GELU, f"one of {', '.join(_GELU)}"),
        ("qkv_bias", values["qkv_bias"], values["qkv_bias"] is True, "true"),
        ("num_channels", values["num_channels"], values["num_channels"] == 3, "3"),
        ("patch_size", patch, isinstance(patch, int), "one number: square patches"),
        ("head_dim", values.get("head_dim"), values.get("head_dim", head_dim) in (None, head_dim), f"{head_dim}"),
    ):
        if not right:
            todo = "give a model with this value; other variants are not supported"
            raise InputError(f"{where}: {key}", expected=expected, found=repr(found), todo=todo)
    fields = {ours: values[theirs] for ours, theirs in _FIELDS.items()}
    fields.update(patch_size=patch, gelu=_GELU[values["hidden_act"]])
    if config["model_type"] == "vit_mae":
        fields.update({ours: values[theirs] for ours, theirs in _DECODER_FIELDS.items()})
        fields.update(IMAGENET)
    else:
        fields["pool"] = "cls"
    labels = config.get("id2label")
    classes = [str(labels[key]) for key in sorted(labels, key=int)] if labels else None
    if classes == [f"LABEL_{number}" for number in range(len(classes or []))]:
        classes = None  # transformers writes these if nobody named the classes
    return Facts(fields, kind=KINDS[names[0]] if names else None, classes=classes, mask_ratio=values.get("mask_ratio"))


def fields_from_preprocessor(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Return pixel_mean and pixel_std of preprocessor_config.json, with ViTImageProcessor's defaults.

    Raises:
        InputError: pixels are not scaled to 0..1 before they are normalised, or a value is out of range.
    """
    values = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, **config}
    factor = values["rescale_factor"] if values["do_rescale"] else 1
    if not isinstance(factor, (int, float)) or abs(factor * 255 - 1) > 1e-3:
        todo = "correct it, or remove the file and pass pixel_mean and pixel_std"
        raise InputError(f"{where}: rescale_factor", expected="1/255", found=str(factor), todo=todo)
    if not values["do_normalize"]:
        return {"pixel_mean": (0, 0, 0), "pixel_std": (1, 1, 1)}
    fields = {}
    for ours, theirs, lowest in (("pixel_mean", "image_mean", 0), ("pixel_std", "image_std", 1e-6)):
        value = values.get(theirs, 0.5)
        colour = value if isinstance(value, list) else [value] * 3
        if len(colour) != 3 or not all(isinstance(v, (int, float)) and lowest <= v <= 1 for v in colour):
            expected = f"three numbers between {lowest} and 1"
            raise InputError(f"{where}: {theirs}", expected=expected, found=repr(value), todo="correct it")
        fields[ours] = tuple(colour)
    return fields


def preprocessor_json(config: ModelConfig) -> dict[str, Any]:
    """Return preprocessor_config.json of a ViTImageProcessor that resizes and normalises images for this model."""
    height, width = config.image_shape
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,  # Pillow's bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.pixel_mean),
        "image_std": list(config.pixel_std),
    }


def config_json(card: ModelCard) -> dict[str, Any]:
    """Return config.json of ViTMAEForPreTraining, ViTForImageClassification or ViTModel (without pooler).

    Raises:
        InputError: the classifier has a part that Hugging Face's does not have.
    """
    config = card.model
    if card.kind == "classifier" and (config.pool, config.head) != ("cls", "linear"):
        todo = "write a .pth or .safetensors file, which timm loads"
        found = "the mean of the patch tokens" if config.pool == "mean" else "batch normalisation before the head"
        raise InputError("hugging_face", expected="a head on the cls token alone", found=found, todo=todo)
    values: dict[str, Any] = {
        "architectures": [next(name for name, kind in KINDS.items() if kind == card.kind)],
        "model_type": "vit_mae" if card.kind == "mae" else "vit",
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
        "patch_size": config.patch_size,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "hidden_act": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_channels": 3,
        "qkv_bias": True,
        "dtype": "float32",
    }
    if card.kind == "mae":
        values.update({theirs: getattr(config, ours) for ours, theirs in _DECODER_FIELDS.items()})
        ratio = config.decoder_mlp_ratio or config.mlp_ratio
        values["decoder_intermediate_size"] = int(config.decoder_embed_dim * ratio)
        values["mask_ratio"] = card.mask_ratio or 0.75
    if card.kind == "classifier":
        names = card.classes or [f"LABEL_{number}" for number in range(len(card.labels))]
        values["id2label"] = {str(number): name for number, name in enumerate(names)}
        values["label2id"] = {name: number for number, name in enumerate(names)}
    return values
