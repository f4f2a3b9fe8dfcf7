"""Names that other projects give the same weights, and what they are called here.

Our names are the state-dict keys of facebookresearch/mae and timm, so those need no mapping. A mapping never drops a
key: what it does not know keeps its name, for the check against `shapes` to name it as unexpected.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
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
# Three spellings: published files; what save_pretrained of transformers 5 writes; a transformers 5 model in memory.
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
    "sincos_pos_embedding": "pos_embed",  # the pre-training net's own name; converted files have pos_embed
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
_MF_STACK = re.compile(r"(blocks|decoder_blocks)\.(\d+)\.(.+)\.(weight|bias)")

_QKV = re.compile(r"((?:decoder_)?blocks\.\d+\.)q\.(weight|bias)")


def detect(names: Mapping[str, object]) -> Layout:
    """Which project's names these are; what is of none is taken for upstream's and fails by name later."""
    if any("patch_embeddings.projection" in name for name in names):
        return "hugging_face"
    if any(name.removeprefix("vit.") == "cls_tokens" for name in names):
        return "mindformers"
    return "upstream"


def to_ours(weights: Mapping[str, np.ndarray], layout: Layout) -> Weights:
    """Rename a file's tensors; q, k and v are stacked to one (3 D, D) matrix, transposed ones turned."""
    if layout == "upstream":
        return dict(weights)
    rename = _from_hugging_face if layout == "hugging_face" else _from_mindformers
    origins = {name: rename(name) for name in weights}
    found = {ours: weights[name] for name, ours in origins.items()}
    if len(found) < len(origins):  # two spellings of one weight: which is meant cannot be known
        return dict(weights)
    if layout == "mindformers":
        for name in found:
            if name.endswith(_MF_TRANSPOSED):
                found[name] = np.ascontiguousarray(found[name].T)
    return _stack_qkv(found)


def to_hugging_face(weights: Mapping[str, np.ndarray], *, prefixed: bool) -> Weights:
    """Our names -> those of files that Hugging Face publishes, which transformers 4 and 5 load.

    `prefixed` puts `vit.` before the encoder, as in models with something on top of it.
    """
    singles = {ours: theirs for theirs, ours in _HF_SINGLE.items()}
    inner = {ours: theirs for theirs, ours in _HF_BLOCK.items()}
    stacks = {"blocks": "encoder.layer", "decoder_blocks": "decoder.decoder_layers"}
    found: Weights = {}
    for name, value in weights.items():
        match = re.fullmatch(r"(blocks|decoder_blocks)\.(\d+)\.(.+)\.(weight|bias)", name)
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
    """Every weight of a model and its shape: of the MAE, of a classifier, or of an encoder with its final norm."""
    config = card.model
    dim, patch = config.embed_dim, config.patch_size
    tokens = 1 + config.grid[0] * config.grid[1]
    found: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, tokens, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
        **_stack_shapes("blocks", config.depth, dim, config.mlp_ratio),
    }
    if card.kind == "classifier":
        found.update(_norm("fc_norm" if config.pool == "mean" else "norm", dim))
        if config.head == "batch_norm":
            found.update(
                {"head.0.running_mean": (dim,), "head.0.running_var": (dim,), "head.0.num_batches_tracked": ()}
            )
        found.update(_linear("head.1" if config.head == "batch_norm" else "head", dim, len(card.labels)))
        return found
    found.update(_norm("norm", dim))
    if card.kind == "mae":
        width = config.decoder_embed_dim
        found.update(
            {
                **_linear("decoder_embed", dim, width),
                "mask_token": (1, 1, width),
                "decoder_pos_embed": (1, tokens, width),
                **_stack_shapes(
                    "decoder_blocks", config.decoder_depth, width, config.decoder_mlp_ratio or config.mlp_ratio
                ),
                **_norm("decoder_norm", width),
                **_linear("decoder_pred", width, 3 * patch * patch),
            }
        )
    return found


def differences(
    weights: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], may_miss: Collection[str] = ()
) -> str:
    """Every missing, unexpected and mis-shaped weight by name; empty where there is none."""
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
    match = _MF_STACK.fullmatch(bare)
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


def _stack_shapes(stack: str, depth: int, dim: int, mlp_ratio: float) -> dict[str, tuple[int, ...]]:
    return {f"{stack}.{i}.{name}": shape for i in range(depth) for name, shape in _block(dim, int(dim * mlp_ratio))}


def _block(dim: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm("norm1", dim).items()
    yield from _linear("attn.qkv", dim, 3 * dim).items()
    yield from _linear("attn.proj", dim, dim).items()
    yield from _norm("norm2", dim).items()
    yield from _linear("mlp.fc1", dim, hidden).items()
    yield from _linear("mlp.fc2", hidden, dim).items()


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
