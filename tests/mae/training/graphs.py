"""Training steps as MindSpore's compiler hands them to a device's backend: forward, gradients and update in one graph.

They are compiled as for an export, which stops before the backend. So a graph may have operators that a CPU lacks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.common.api import _cell_graph_executor
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2
from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto

from mae.config.sections import Config
from mae.device.context import setup
from mae.masking import ids_from_noise
from mae.model import layers
from mae.training import task as job
from mae.training import update

IMAGES, DEPTH, DECODER_DEPTH, HEADS = 3, 2, 1, 2
LEN_KEEP, PATCHES = 5, 15
SIZES = {
    "image_size": (12, 20),
    "patch_size": 4,
    "embed_dim": 16,
    "depth": DEPTH,
    "num_heads": HEADS,
    "decoder_embed_dim": 8,
    "decoder_depth": DECODER_DEPTH,
    "decoder_num_heads": HEADS,
}
RECIPE = {"epochs": 2, "batch_size": IMAGES, "blr": 1e-3, "warmup_epochs": 1}
# Operators that only order, name or group values. A device computes nothing for them.
STRUCTURE = {"Depend", "Load", "UpdateState", "MakeTuple", "TupleGetItem", "Return", "StopGradient", "Constant"}


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

    def inputs_of(self, name: str) -> set[str]:
        """Everything whose value `name` depends on, itself too."""
        found, left = set(), [name]
        while left:
            current = left.pop()
            if current not in found:
                found.add(current)
                left += self.nodes[current].data if current in self.nodes else []
        return found

    def type_of(self, name: str) -> str | None:
        """The type of a value, as NumPy names it; none for a constant that is not a tensor."""
        tensors = self.nodes[name].tensors if name in self.nodes else [self.inputs[name]] if name in self.inputs else []
        return _type(tensors[0]) if tensors else None

    def operators(self) -> dict[str, set[tuple[str, str]]]:
        """What a device computes: operator -> its types, each ("in" or "out", type)."""
        found: dict[str, set[tuple[str, str]]] = {}
        for node in self.nodes.values():
            if node.kind not in STRUCTURE:
                types = found.setdefault(node.kind, set())
                types |= {("in", t) for t in map(self.type_of, node.data) if t is not None}
                types |= {("out", _type(tensor)) for tensor in node.tensors}
        return found


def compiled(step: ms.nn.Cell, *arguments: Tensor) -> Graph:
    """What MindSpore compiles of a step."""
    phase, _ = _cell_graph_executor.compile(step, *arguments, phase="export.mindir", do_convert=False)
    proto = ModelProto()
    proto.ParseFromString(_cell_graph_executor._get_func_graph_proto(step, phase, "mind_ir"))
    assert not proto.functions, "a graph of several functions: these tests read one"
    nodes = {}
    for n in proto.graph.node:
        kind = re.sub(r"^REF::(.*?)(:\d+)?$", r"\1", n.op_type)
        data = {"Depend": n.input[:1], "Load": n.input[:1], "UpdateState": []}.get(kind, n.input)
        tensors = [t for a in n.attribute if a.name == "shape" for t in _tensors(a)]
        nodes[n.name] = Node(n.name, kind, list(data), tensors)
    parameters = {p.name: p.name.split(":")[-1] for p in proto.graph.parameter}
    inputs = {p.name: p for p in proto.graph.parameter}
    inputs.update({i.name: i.tensor[0] for i in proto.graph.input})
    return Graph(nodes, parameters, inputs, proto.graph.output[0].name)


def _type(tensor: TensorProto) -> str:
    name = TensorProto.DataType.Name(tensor.data_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _tensors(attribute: Any) -> Iterator[TensorProto]:
    yield from attribute.tensors
    for value in attribute.values:
        yield from _tensors(value)


def training_step(task: str = "pretrain", *, depth: int = DEPTH, ascend: bool = False, **sections: Any) -> Graph:
    """The graph of the step that `mae train` repeats.

    Args:
        task: which job.
        depth: number of the encoder's blocks.
        ascend: with the layer normalisation and the overflow flags of an NPU.
        sections: further sections of the config; one of the task is added to RECIPE.
    """
    setup("CPU", ranks=1)
    recipe = {**RECIPE, **sections.pop(task, {})}
    model = {**SIZES, "depth": depth}
    config = Config.model_validate({"task": task, "name": "graph", "model": model, task: recipe, **sections})
    with pytest.MonkeyPatch.context() as patch:
        if ascend:
            patch.setattr(layers, "_CpuNorm", layers._FusedNorm)
            patch.setattr(update, "float_status", lambda: (NPUClearFloatStatusV2(), NPUGetFloatStatusV2()))
        built = job.build_job(config, classes=["a", "b", "c"])
        step = job.build_update(built)
    built.model.set_train(True)
    images, labels = np.zeros((IMAGES, 12, 20, 3), np.uint8), np.zeros(IMAGES, np.int32)
    inputs = [images, labels]
    if task == "pretrain":
        inputs = [images, *ids_from_noise(np.random.default_rng(0).random((IMAGES, PATCHES)), 0.65)]
    elif task == "finetune":
        inputs += [np.ones((IMAGES, depth, 2), np.float32), np.ones((12, 20), np.float32)]
    return compiled(step, Tensor(1e-3, ms.float32), *map(Tensor, inputs))


COMPUTE = {
    "float32": {},
    "float16": {"dtype": "float16"},
    "decoder in float32, blocks recomputed": {"dtype": "float16", "decoder_float32": True, "recompute": True},
}


@functools.cache
def graph_of(name: str) -> Graph:
    """The graph of the pre-training step as `COMPUTE[name]` asks for it. Each is compiled once."""
    return training_step(compute=COMPUTE[name])
