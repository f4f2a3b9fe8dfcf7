"""The compiled training step: no sort, no scatter, no dynamic shape, no mask token in the encoder, float16 where meant.

The graph is what MindSpore's compiler hands to a device's backend, forward, gradients and AdamW in one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import mindspore as ms
import pytest
from mindspore import nn, ops

from mae.model import mae as model
from mae.model.layers import Mix
from mae.model.mae import MaskedAutoencoder
from mae.training import task as job
from mae.training import update as objective
from tests.mae.training.graphs import (
    COMPUTE,
    DECODER_DEPTH,
    DEPTH,
    IMAGES,
    LEN_KEEP,
    PATCHES,
    Graph,
    Node,
    graph_of,
    training_step,
)

# Operators that a 910A runs on its scalar units, and those that automatic differentiation makes of a gather.
SLOW = re.compile(
    r"sort|top_?k|scatter|segment|gather\w*grad|index_?(put|add|fill)|unique|non_?zero|masked_?select", re.I
)
MATRIX_PRODUCT = re.compile(r"(Batch)?MatMul(Ext)?|Dense|Linear")
FLOAT32, FLOAT16 = "float32", "float16"
LAYOUT = ("Load", "TensorMove", "Cast", "Reshape", "Transpose")


def forward(graph: Graph) -> dict[str, Node]:
    """The nodes that the loss, first of what a step returns, depends on: not those of gradients and update."""
    returned = graph.output
    while graph.nodes[returned].kind in ("Depend", "Stack", "MakeTuple"):
        returned = graph.nodes[returned].data[0]
    needed = graph.inputs_of(returned)
    return {name: node for name, node in graph.nodes.items() if name in needed}


def weight(graph: Graph, name: str) -> str | None:
    """The parameter that a tensor is, perhaps cast or laid out otherwise."""
    while name in graph.nodes:
        if graph.nodes[name].kind not in LAYOUT:
            return None
        name = graph.nodes[name].data[0]
    return graph.parameters.get(name)


def matrix_products(graph: Graph) -> Iterator[tuple[Node, str | None]]:
    """The matrix products of the forward pass, each with its weight; attention's have none."""
    for node in forward(graph).values():
        if MATRIX_PRODUCT.fullmatch(node.kind):
            yield node, next((w for w in (weight(graph, name) for name in node.data) if w), None)


def slow_operators(graph: Graph) -> set[str]:
    return {node.kind for node in graph.nodes.values() if SLOW.search(node.kind)}


def dynamic_shapes(graph: Graph) -> list[str]:
    tensors = [(n.name, t) for n in graph.nodes.values() for t in n.tensors] + list(graph.inputs.items())
    return [name for name, tensor in tensors if any(size < 0 for size in tensor.dims)]


def masked_encoder_products(graph: Graph) -> list[str]:
    """The encoder's matrix products that see mask tokens, or rows of another number than cls and visible patches."""
    (mask_token,) = (name for name, own in graph.parameters.items() if own == "mask_token")
    rows = {"patch_embed": IMAGES * LEN_KEEP, "blocks": IMAGES * (1 + LEN_KEEP)}
    products = [(n, w) for n, w in matrix_products(graph) if w and w.startswith(tuple(rows))]
    assert len(products) == 1 + 4 * DEPTH, "the encoder's products were not found"
    wrong = [w for n, w in products if math.prod(n.dims[:-1]) != rows[w.split(".")[0]]]
    return wrong + [w for n, w in products if mask_token in graph.inputs_of(n.name)]


def wrongly_typed(graph: Graph) -> list[str]:
    """Matrix products of the forward pass outside float16, norms and softmaxes outside float32, gradients' too."""
    products = list(matrix_products(graph))
    assert len(products) == 1 + 6 * (DEPTH + DECODER_DEPTH) + 2
    wrong = [
        n.kind for n, _ in products if {graph.type_of(i) for i in n.data[:2]} | {graph.type_of(n.name)} != {FLOAT16}
    ]
    norms = [n for n in graph.nodes.values() if re.match("LayerNorm|Softmax", n.kind)]
    assert (
        len([n for n in norms if "Grad" not in n.kind and "Backward" not in n.kind]) >= 3 * (DEPTH + DECODER_DEPTH) + 2
    )
    return wrong + [n.kind for n in norms if {graph.type_of(n.data[0]), graph.type_of(n.name)} != {FLOAT32}]


@pytest.mark.parametrize("name", COMPUTE)
def test_training_step(name):
    graph = graph_of(name)
    assert len(graph.nodes) > 500, name
    assert {"Adam", "Gather", "Softmax"} <= {node.kind for node in graph.nodes.values()}
    assert slow_operators(graph) == set()
    assert dynamic_shapes(graph) == []
    assert masked_encoder_products(graph) == []


def test_mask_token_meets_the_tokens_after_decoder_embed():
    """The walk finds it where it belongs, so its absence from the encoder means something."""
    graph = graph_of("float32")
    (mask_token,) = (name for name, own in graph.parameters.items() if own == "mask_token")
    products = {w: n for n, w in matrix_products(graph) if w}
    sees = {w for w, n in products.items() if mask_token in graph.inputs_of(n.name)}
    assert sees == {w for w in products if w.startswith(("decoder_blocks", "decoder_pred"))}
    assert products["decoder_blocks.0.mlp.fc1.weight"].dims[-2:] == (IMAGES * (1 + PATCHES), 32)


def test_gradients_leave_while_others_are_computed(monkeypatch):
    """An all-reduce waits for what leads to the gradients in its bucket, and for no other parameter's gradient."""
    # Sinh is from tensor to tensor as well, and needs no other process
    monkeypatch.setattr(objective, "all_mean", lambda _number: ops.Sinh())
    monkeypatch.setattr(objective, "BUCKET_BYTES", 8192)
    graph = training_step(device={"ranks": 2})
    reduced = [node for node in graph.nodes.values() if node.kind == "Sinh"]
    trained = [name for name in graph.parameters.values() if name.startswith("adam_m.")]
    sizes = [math.prod(graph.inputs[name].dims) for name, own in graph.parameters.items() if own in trained]
    assert sum(node.dims[0] for node in reduced) == 1 + sum(sizes)  # the loss, too
    products = {n for n, node in graph.nodes.items() if MATRIX_PRODUCT.fullmatch(node.kind)}
    waits_for = sorted(len(products & graph.inputs_of(node.name)) for node in reduced)
    assert len(waits_for) == 6
    assert waits_for[0] < 0.4 * len(products)
    assert waits_for[-1] < 0.6 * len(products)


def test_half_precision():
    assert wrongly_typed(graph_of("float16")) == []
    graph = graph_of("decoder in float32, blocks recomputed")
    types = {w: graph.type_of(n.name) for n, w in matrix_products(graph) if w}
    assert types == {w: FLOAT32 if w.startswith("decoder") else FLOAT16 for w in types}


class SortsOnDevice(MaskedAutoencoder):
    def construct(self, images, ids_keep, ids_restore):
        return super().construct(images, ids_keep, ops.argsort(ids_restore.astype(ms.float32)).astype(ms.int32))


class MaskTokensInEncoder(MaskedAutoencoder):
    """As SimMIM: the encoder sees all patches, the removed ones replaced."""

    def encode_visible(self, patches, ids_keep):
        token = ops.concat((self.mask_token, self.mask_token), -1)[:, :, : self.embed_dim]
        x = self.patch_embed(ops.gather(patches, ids_keep, 1, 1)) + token
        x = ops.concat((ops.broadcast_to(self.cls_token, (x.shape[0], 1, self.embed_dim)), x), 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class AllPatchesInEncoder(MaskedAutoencoder):
    def encode_visible(self, patches, ids_keep):
        return self.norm(self.transform(patches, self.pos_embed[:, 1:]))[:, : 1 + ids_keep.shape[1]]


class PlainUnshuffle(nn.Cell):
    """Differentiated automatically."""

    def construct(self, visible, mask_token, ids_keep, ids_restore):
        n, len_keep, dim = visible.shape
        removed = ops.broadcast_to(mask_token, (n, ids_restore.shape[1] - len_keep, dim))
        return ops.gather(ops.concat((visible, removed), 1), ids_restore, 1, 1)


class ErrorOfRemovedOnly(MaskedAutoencoder):
    """Picks the removed patches by a boolean mask, whose number a compiler cannot know."""

    def construct(self, images, ids_keep, ids_restore):
        pred, removed = self.reconstruct(images, ids_keep, ids_restore)
        return ops.masked_select(pred.mean(-1), removed > 0).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "replaced", "bad", "check"),
    [
        ("sort", job, "MaskedAutoencoder", SortsOnDevice, slow_operators),
        ("scatter", model, "Unshuffle", PlainUnshuffle, slow_operators),
        ("dynamic shape", job, "MaskedAutoencoder", ErrorOfRemovedOnly, dynamic_shapes),
        ("mask tokens in the encoder", job, "MaskedAutoencoder", MaskTokensInEncoder, masked_encoder_products),
        ("all patches in the encoder", job, "MaskedAutoencoder", AllPatchesInEncoder, masked_encoder_products),
    ],
)
def test_a_bad_model_is_caught(monkeypatch, name, module, replaced, bad, check):
    monkeypatch.setattr(module, replaced, bad)
    assert check(training_step()), name


@pytest.mark.slow
def test_a_half_precision_softmax_is_caught(monkeypatch):
    def build(self, dtype):
        right(self, dtype)
        self.softmax = HalfSoftmax()

    right = Mix.__init__
    monkeypatch.setattr(Mix, "__init__", build)
    found = wrongly_typed(training_step(compute=COMPUTE["float16"]))
    assert {kind for kind in found if kind.startswith("Softmax")}


class HalfSoftmax(nn.Cell):
    def construct(self, x):
        return ops.softmax(x.astype(ms.float16), -1)


def test_single_precision_products_are_caught():
    assert len(wrongly_typed(graph_of("float32"))) == 1 + 6 * (DEPTH + DECODER_DEPTH) + 2
