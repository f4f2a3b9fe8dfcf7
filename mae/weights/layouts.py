"""Maps the weight names of other projects to ours and back, and lists the shapes that a model's weights have.

Our names are the state-dict keys of facebookresearch/mae and timm, so those need no mapping. A mapping never drops a
weight: a name that it does not know stays as it is, and the comparison with `shapes` reports it as unexpected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np

from mae.model.card import ModelCard

Layout = Literal["upstream", "hugging_face", "mindformers"]
Weights = dict[str, np.ndarray]

_HF_SINGLE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed": "decoder_embed",
    "decoder.decoder_norm": "decoder_norm",
    "decoder.decoder_pred": "decoder_pred",
}
# Three spellings: published files, files that save_pretrained of transformers 5 writes, its models in memory.
_HF_STACKS = {
    "encoder.layer": "blocks",
    "layers": "blocks",
    "decoder.decoder_layers": "decoder_blocks",
    "decoder.decoder_encoder.layer": "decoder_blocks",
}
_HF_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query": "q",
    "attention.attention.key": "k",
    "attention.attention.value": "v",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_HF_BLOCK_IN_MEMORY = {
    "attention.q_proj": "q",
    "attention.k_proj": "k",
    "attention.v_proj": "v",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_HF_STACK = re.compile(rf"({'|'.join(map(re.escape, _HF_STACKS))})\.(\d+)\.(.+)\.(weight|bias)")

_MF_SINGLE = {
    "cls_tokens": "cls_token",
    "mask_tokens": "mask_token",
    "sincos_pos_embedding": "pos_embed",  # in pre-training checkpoints; converted files have pos_embed
}
_MF_BLOCK = {
    "layernorm1": "norm1",
    "layernorm2": "norm2",
    "attention.dense1": "q",
    "attention.dense2": "k",
    "attention.dense3": "v",
    "attention.projection": "attn.proj",
    "output.mapping": "mlp.fc1",
    "output.projection": "mlp.fc2",
}
_MF_TRANSPOSED = ("attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")  # stored (in, out)
_STACK = re.compile(r"(blocks|decoder_blocks)\.(\d+)\.(.+)\.(weight|bias)")

_QKV = re.compile(r"((?:decoder_)?blocks\.\d+\.)q\.(weight|bias)")


def detect(names: Mapping[str, object]) -> Layout:
    """Return the layout that uses these names; `upstream` for unknown ones, which `differences` reports later."""
    if any("patch_embeddings.projection" in name for name in names):
        return "hugging_face"
    if any(name.removeprefix("vit.") == "cls_tokens" for name in names):
        return "mindformers"
    return "upstream"


def to_ours(weights: Mapping[str, np.ndarray], layout: Layout) -> Weights:
    """Return a file's tensors under our names: q, k and v stacked to (3 D, D), linear weights as (out, in)."""
    if layout == "upstream":
        return dict(weights)
    rename = _from_hugging_face if layout == "hugging_face" else _from_mindformers
    origins = {name: rename(name) for name in weights}
    found = {ours: weights[name] for name, ours in origins.items()}
    if len(found) < len(origins):  # two spellings of one weight: we cannot know which is right
        return dict(weights)
    if layout == "mindformers":
        for name in found:
            if name.endswith(_MF_TRANSPOSED):
                found[name] = np.ascontiguousarray(found[name].T)
    return _stack_qkv(found)


def to_hugging_face(weights: Mapping[str, np.ndarray], *, prefixed: bool) -> Weights:
    """Return weights under the names of the files that Hugging Face publishes, which transformers 4 and 5 load.

    `prefixed` adds `vit.` to the encoder's names, as in models with a decoder or a head.
    """
    singles = {ours: theirs for theirs, ours in _HF_SINGLE.items()}
    inner = {ours: theirs for theirs, ours in _HF_BLOCK.items()}
    stacks = {"blocks": "encoder.layer", "decoder_blocks": "decoder.decoder_layers"}
    found: Weights = {}
    for name, value in weights.items():
        match = _STACK.fullmatch(name)
        if match is None:
            stem, kind = (name, "") if name in singles else name.rsplit(".", 1)
            parts = {singles[stem] + (f".{kind}" if kind else ""): value}
        else:
            stack, number, layer, kind = match.groups()
            values = zip("qkv", np.split(value, 3)) if layer == "attn.qkv" else [(layer, value)]
            parts = {f"{stacks[stack]}.{number}.{inner[part]}.{kind}": v for part, v in values}
        for theirs, part in parts.items():
            bare = theirs.startswith(("decoder.", "classifier.")) or not prefixed
            found[theirs if bare else f"vit.{theirs}"] = part
    return found


def shapes(card: ModelCard) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a MAE, of a classifier, or of an encoder with its final norm."""
    config = card.model
    dim, patch, width = config.embed_dim, config.patch_size, config.decoder_embed_dim
    tokens = 1 + config.grid[0] * config.grid[1]
    found: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, tokens, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        **_stack("blocks", config.depth, dim, config.mlp_ratio),
        **_norm("fc_norm" if card.kind == "classifier" and config.pool == "mean" else "norm", dim),
    }
    if card.kind == "classifier":
        if config.head == "batch_norm":
            found |= {"head.0.running_mean": (dim,), "head.0.running_var": (dim,), "head.0.num_batches_tracked": ()}
        found |= _linear("head.1" if config.head == "batch_norm" else "head", dim, len(card.labels))
    if card.kind == "mae":
        ratio = config.decoder_mlp_ratio or config.mlp_ratio
        found |= {
            **_linear("decoder_embed", dim, width),
            "mask_token": (1, 1, width),
            "decoder_pos_embed": (1, tokens, width),
            **_stack("decoder_blocks", config.decoder_depth, width, ratio),
            **_norm("decoder_norm", width),
            **_linear("decoder_pred", width, 3 * patch * patch),
        }
    return found


def differences(
    weights: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], may_miss: Collection[str] = ()
) -> str:
    """Return the names of all missing, unexpected and mis-shaped weights as text; an empty text if there are none."""
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name])}"
        for name in sorted(set(expected) & set(weights))
        if tuple(weights[name].shape) != tuple(expected[name])
    ]
    faults = (
        ("missing", sorted(set(expected) - set(weights) - set(may_miss))),
        ("unexpected", sorted(set(weights) - set(expected))),
        ("mis-shaped", misshapen),
    )
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in faults if names)


def _from_hugging_face(name: str) -> str:
    bare = name.removeprefix("vit.")
    match = _HF_STACK.fullmatch(bare)
    if match is not None:
        stack, number, layer, kind = match.groups()
        inner = _HF_BLOCK.get(layer) or _HF_BLOCK_IN_MEMORY.get(layer)
        return f"{_HF_STACKS[stack]}.{number}.{inner}.{kind}" if inner else name
    stem, dot, kind = bare.rpartition(".")
    if bare in _HF_SINGLE:
        return _HF_SINGLE[bare]
    return f"{_HF_SINGLE[stem]}{dot}{kind}" if stem in _HF_SINGLE else name


def _from_mindformers(name: str) -> str:
    bare = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name.removeprefix("vit.")))
    match = _STACK.fullmatch(bare)
    if match is None:
        return _MF_SINGLE.get(bare, bare)
    stack, number, layer, kind = match.groups()
    return f"{stack}.{number}.{_MF_BLOCK[layer]}.{kind}" if layer in _MF_BLOCK else name


def _stack_qkv(weights: Weights) -> Weights:
    stacked: Weights = {}
    used: set[str] = set()
    for name in weights:
        match = _QKV.fullmatch(name)
        if match is None:
            continue
        parts = [f"{match[1]}{part}.{match[2]}" for part in "qkv"]
        if all(part in weights for part in parts) and len({weights[part].shape for part in parts}) == 1:
            stacked[f"{match[1]}attn.qkv.{match[2]}"] = np.concatenate([weights[part] for part in parts])
            used.update(parts)
    return {**{name: value for name, value in weights.items() if name not in used}, **stacked}


def _stack(stack: str, depth: int, dim: int, mlp_ratio: float) -> dict[str, tuple[int, ...]]:
    hidden = int(dim * mlp_ratio)
    block = {
        **_norm("norm1", dim),
        **_linear("attn.qkv", dim, 3 * dim),
        **_linear("attn.proj", dim, dim),
        **_norm("norm2", dim),
        **_linear("mlp.fc1", dim, hidden),
        **_linear("mlp.fc2", hidden, dim),
    }
    return {f"{stack}.{number}.{name}": shape for number in range(depth) for name, shape in block.items()}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
