"""The compiled training step: no sort, no scatter, no dynamic shape, no mask token in the encoder, float16 where meant.

The graph is what MindSpore's compiler hands to a device's backend, forward, gradients and AdamW in one.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.common.api import _cell_graph_executor
from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto

from mae.config.sections import Config
from mae.device.context import setup
from mae.masking import ids_from_noise
from mae.model import mae as model
from mae.model.layers import Mix
from mae.model.mae import MaskedAutoencoder
from mae.training import task as job
from mae.training import update as objective
from mae.training.update import Update

IMAGES, DEPTH, DECODER_DEPTH, HEADS = 3, 2, 1, 2
LEN_KEEP, PATCHES = 5, 15
CONFIG = {
    "task": "pretrain",
    "name": "graph",
    "model": {
        "image_size": (12, 20),
        "patch_size": 4,
        "embed_dim": 16,
        "depth": DEPTH,
        "num_heads": HEADS,
        "decoder_embed_dim": 8,
        "decoder_depth": DECODER_DEPTH,
        "decoder_num_heads": HEADS,
    },
    "pretrain": {"epochs": 2, "batch_size": IMAGES, "blr": 1e-3, "warmup_epochs": 1, "mask_ratio": 0.65},
}
# Operators that a 910A runs on its scalar units, and those that automatic differentiation makes of a gather.
SLOW = re.compile(
    r"sort|top_?k|scatter|segment|gather\w*grad|index_?(put|add|fill)|unique|non_?zero|masked_?select", re.I
)
MATRIX_PRODUCT = re.compile(r"(Batch)?MatMul(Ext)?|Dense|Linear")
FLOAT32, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


class Node(NamedTuple):
    """An operator; `data` are the inputs whose values it reads, without those that only order side effects."""

    name: str
    kind: str
    data: list[str]
    tensors: list[TensorProto]  # type and shape of each output

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.tensors[0].dims)


class Graph(NamedTuple):
    """A compiled graph; `parameters` maps a parameter's name in the graph to its own."""

    nodes: dict[str, Node]
    parameters: dict[str, str]
    inputs: dict[str, TensorProto]
    output: str

    def behind(self, name: str) -> set[str]:
        """Everything whose value `name` depends on, itself too."""
        found, left = set(), [name]
        while left:
            current = left.pop()
            if current not in found:
                found.add(current)
                left += self.nodes[current].data if current in self.nodes else []
        return found

    def forward(self) -> dict[str, Node]:
        """The nodes that the loss, first of what a step returns, depends on: not those of gradients and update."""
        returned = self.output
        while self.nodes[returned].kind in ("Depend", "Stack", "MakeTuple"):
            returned = self.nodes[returned].data[0]
        behind = self.behind(returned)
        return {name: node for name, node in self.nodes.items() if name in behind}

    def weight(self, name: str) -> str | None:
        """The parameter that a tensor is, perhaps cast or laid out otherwise."""
        while name in self.nodes:
            if self.nodes[name].kind not in ("Load", "TensorMove", "Cast", "Reshape", "Transpose"):
                return None
            name = self.nodes[name].data[0]
        return self.parameters.get(name)

    def products(self) -> Iterator[tuple[Node, str | None]]:
        """The matrix products of the forward pass, each with its weight; attention's have none."""
        for node in self.forward().values():
            if MATRIX_PRODUCT.fullmatch(node.kind):
                yield node, next((w for w in map(self.weight, node.data) if w), None)

    def type_of(self, name: str) -> int:
        if name in self.nodes:
            return self.nodes[name].tensors[0].data_type
        return self.inputs[name].data_type


def compiled(update: Update, *arguments: Tensor) -> Graph:
    """What MindSpore compiles of a training step."""
    update.compile(*arguments)
    proto = ModelProto()
    proto.ParseFromString(_cell_graph_executor._get_func_graph_proto(update, update.current_phase, "mind_ir"))
    assert not proto.functions, "a graph of several functions: this test reads one"
    nodes = {}
    for n in proto.graph.node:
        kind = re.sub(r"^REF::(.*?)(:\d+)?$", r"\1", n.op_type)
        data = {"Depend": n.input[:1], "Load": n.input[:1], "UpdateState": []}.get(kind, n.input)
        tensors = [t for a in n.attribute if a.name == "shape" for t in _tensors(a)]
        nodes[n.name] = Node(n.name, kind, list(data), tensors)
    parameters = {p.name: p.name.split(":")[-1] for p in proto.graph.parameter}
    inputs = {p.name: p for p in proto.graph.parameter}
    inputs |= {i.name: i.tensor[0] for i in proto.graph.input}
    return Graph(nodes, parameters, inputs, proto.graph.output[0].name)


def _tensors(attribute) -> Iterator[TensorProto]:
    yield from attribute.tensors
    for value in attribute.values:
        yield from _tensors(value)


def training_step(compute: dict | None = None, ranks: int = 1) -> Graph:
    """The graph of the step that `mae train` repeats."""
    config = Config.model_validate({**CONFIG, "compute": compute or {}})
    built = job.build_job(config, classes=[])
    update = Update(built.loss, built.optimizer, ranks=ranks, accum_iter=1)
    built.model.set_train(True)
    ids = ids_from_noise(np.random.default_rng(0).random((IMAGES, PATCHES)), 0.65)
    assert ids[0].shape == (IMAGES, LEN_KEEP)
    images = np.zeros((IMAGES, 12, 20, 3), np.uint8)
    return compiled(update, Tensor(1e-3, ms.float32), *map(Tensor, (images, *ids)))


@functools.cache
def graph_of(name: str) -> Graph:
    """The graph of the step as `COMPUTE[name]` asks for it, compiled once."""
    return training_step(COMPUTE[name])


def slow_operators(graph: Graph) -> set[str]:
    return {node.kind for node in graph.nodes.values() if SLOW.search(node.kind)}


def dynamic_shapes(graph: Graph) -> list[str]:
    tensors = [(n.name, t) for n in graph.nodes.values() for t in n.tensors] + list(graph.inputs.items())
    return [name for name, tensor in tensors if any(size < 0 for size in tensor.dims)]


def masked_encoder_products(graph: Graph) -> list[str]:
    """The encoder's matrix products that see mask tokens, or rows of another number than cls and visible patches."""
    (mask_token,) = (name for name, own in graph.parameters.items() if own == "mask_token")
    rows = {"patch_embed": IMAGES * LEN_KEEP, "blocks": IMAGES * (1 + LEN_KEEP)}
    products = [(n, w) for n, w in graph.products() if w and w.startswith(tuple(rows))]
    assert len(products) == 1 + 4 * DEPTH, "the encoder's products were not found"
    wrong = [w for n, w in products if math.prod(n.dims[:-1]) != rows[w.split(".")[0]]]
    return wrong + [w for n, w in products if mask_token in graph.behind(n.name)]


def wrongly_typed(graph: Graph) -> list[str]:
    """Matrix products of the forward pass outside float16, norms and softmaxes outside float32, gradients' too."""
    products = list(graph.products())
    assert len(products) == 1 + 6 * (DEPTH + DECODER_DEPTH) + 2
    wrong = [
        n.kind for n, _ in products if {graph.type_of(i) for i in n.data[:2]} | {graph.type_of(n.name)} != {FLOAT16}
    ]
    norms = [n for n in graph.nodes.values() if re.match("LayerNorm|Softmax", n.kind)]
    assert (
        len([n for n in norms if "Grad" not in n.kind and "Backward" not in n.kind]) >= 3 * (DEPTH + DECODER_DEPTH) + 2
    )
    return wrong + [n.kind for n in norms if {graph.type_of(n.data[0]), graph.type_of(n.name)} != {FLOAT32}]


@pytest.fixture(autouse=True)
def _cpu():
    setup("CPU", ranks=1)


COMPUTE = {
    "float32": {},
    "float16": {"dtype": "float16"},
    "float16, decoder in float32": {"dtype": "float16", "decoder_float32": True},
    "recomputed": {"dtype": "float16", "recompute": True},
}


@pytest.mark.parametrize("name", COMPUTE)
def test_training_step(name):
    graph = graph_of(name)
    assert len(graph.nodes) > 500, name
    assert {"Adam", "Gather", "Softmax"} <= {node.kind for node in graph.nodes.values()}
    assert slow_operators(graph) == set()
    assert dynamic_shapes(graph) == []
    assert masked_encoder_products(graph) == []


def test_mask_token_meets_the_tokens_behind_decoder_embed():
    """The walk finds it where it belongs, so its absence from the encoder means something."""
    graph = graph_of("float32")
    (mask_token,) = (name for name, own in graph.parameters.items() if own == "mask_token")
    products = {w: n for n, w in graph.products() if w}
    sees = {w for w, n in products.items() if mask_token in graph.behind(n.name)}
    assert sees == {w for w in products if w.startswith(("decoder_blocks", "decoder_pred"))}
    assert products["decoder_blocks.0.mlp.fc1.weight"].dims[-2:] == (IMAGES * (1 + PATCHES), 32)


@pytest.mark.parametrize(("name", "bucket_bytes", "count"), [("one bucket", 1 << 20, 1), ("several", 8192, 6)])
def test_gradients_leave_while_others_are_computed(monkeypatch, name, bucket_bytes, count):
    """An all-reduce waits for what leads to the gradients in its bucket, and for no other parameter's gradient."""
    # Sinh is from tensor to tensor as well, and needs no other process
    monkeypatch.setattr(objective, "all_mean", lambda _number: ops.Sinh())
    monkeypatch.setattr(objective, "BUCKET_BYTES", bucket_bytes)
    graph = training_step(ranks=2)
    reduced = [node for node in graph.nodes.values() if node.kind == "Sinh"]
    trained = job.build_job(Config.model_validate(CONFIG), classes=[]).model.trainable_params()
    assert sum(node.dims[0] for node in reduced) == 1 + sum(p.size for p in trained), name  # the loss, too
    products = {n for n, node in graph.nodes.items() if MATRIX_PRODUCT.fullmatch(node.kind)}
    waits_for = sorted(len(products & graph.behind(node.name)) for node in reduced)
    assert len(waits_for) == count, name
    assert (waits_for[0] < 0.4 * len(products) and waits_for[-1] < 0.6 * len(products)) == (count > 1), waits_for


def test_half_precision():
    assert wrongly_typed(graph_of("float16")) == []
    products = {w: n for n, w in graph_of("float16, decoder in float32").products() if w}
    types = {w: n.tensors[0].data_type for w, n in products.items()}
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


def test_a_half_precision_softmax_is_caught(monkeypatch):
    def build(self, dtype):
        right(self, dtype)
        self.softmax = HalfSoftmax()

    right = Mix.__init__
    monkeypatch.setattr(Mix, "__init__", build)
    found = wrongly_typed(training_step(COMPUTE["float16"]))
    assert {kind for kind in found if kind.startswith("Softmax")}


class HalfSoftmax(nn.Cell):
    def construct(self, x):
        return ops.softmax(x.astype(ms.float16), -1)


def test_single_precision_products_are_caught():
    assert len(wrongly_typed(graph_of("float32"))) == 1 + 6 * (DEPTH + DECODER_DEPTH) + 2
