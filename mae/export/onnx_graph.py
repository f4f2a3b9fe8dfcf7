"""Builds the ONNX graph of a vision transformer from its weights and sizes.

`mindspore.export` of 2.10 cannot write Erf and Unstack to ONNX, and writes opset 11 with a fixed batch size. This graph
has one node per operator and any batch size. It shares no code with mae/model/vit.py, so running both compares two
independent definitions of the model. N images, L patches, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from mae.config.sections import ModelConfig

if TYPE_CHECKING:
    import onnx

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # of the release that introduced opset 17; older runtimes reject newer versions
BATCH_NORM_EPS = 1e-6  # in upstream's linear probe
BATCH = "batch"  # name of the batch dimension if its size is not fixed


def vit_graph(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    *,
    output: str,
    shape: tuple[int, ...],
    batch_size: Optional[int],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Return the ONNX model that computes `output` from normalised `images`, float32 (N, 3, H, W).

    Args:
        config: sizes, GELU, eps, pooling and head.
        weights: float32 under upstream's state-dict keys.
        output: `tokens` (N, 1 + L, D) after the final norm, or `logits` (N, classes).
        shape: the output's shape without the batch dimension.
        batch_size: N; none: any.
        metadata: entries of the file's metadata.
    """
    from onnx import TensorProto, helper

    graph = _Graph(weights)
    x = graph.embed("images", config)
    for number in range(config.depth):
        x = graph.block(x, f"blocks.{number}", config)
    if output == "tokens":
        graph.layer_norm(x, "norm", config, output=output)
    else:
        graph.head(graph.pool(x, config), config, output=output)
    n = batch_size or BATCH
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [n, 3, *config.image_shape])
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, [n, *shape])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "vit", [images], [result], initializer=list(graph.initializers.values())),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="maeflow",
    )
    helper.set_model_props(model, dict(metadata))
    return model


class _Graph:
    """Collects nodes and initialisers. Each layer is a method that takes and returns names of tensors."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def node(self, kind: str, *inputs: str, output: Optional[str] = None, outputs: int = 1, **attributes: Any) -> str:
        """Add an operator and return its first output `name`; further outputs are `name:1`, `name:2`, ..."""
        from onnx import helper

        name = output or f"{kind}_{len(self.nodes)}"
        names = [name, *(f"{name}:{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        """Return an initialiser. It is added only once per name."""
        from onnx import numpy_helper

        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def shape(self, *sizes: int) -> str:
        return self.constant("shape_" + "_".join(map(str, sizes)), np.array(sizes, np.int64))

    def scalar(self, value: float) -> str:
        return self.constant(f"scalar_{value}", np.array(value, np.float32))

    def linear(self, x: str, name: str, *, output: Optional[str] = None) -> str:
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        bias = self.constant(f"{name}.bias", self.weights[f"{name}.bias"])
        return self.node("Add", self.node("MatMul", x, weight), bias, output=output)

    def layer_norm(self, x: str, name: str, config: ModelConfig, *, output: Optional[str] = None) -> str:
        scale, bias = (self.constant(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.node("LayerNormalization", x, scale, bias, output=output, axis=-1, epsilon=config.layer_norm_eps)

    def embed(self, images: str, config: ModelConfig) -> str:
        """(N, 3, H, W) -> (N, 1 + L, D). A row of zeros is put first; one constant adds cls token and positions."""
        weights, p, dim = self.weights, config.patch_size, config.embed_dim
        kernel = self.constant("patch_embed.proj.weight", weights["patch_embed.proj.weight"])
        bias = self.constant("patch_embed.proj.bias", weights["patch_embed.proj.bias"])
        x = self.node("Conv", images, kernel, bias, kernel_shape=[p, p], strides=[p, p])  # (N, D, rows, columns)
        x = self.node("Transpose", self.node("Reshape", x, self.shape(0, dim, -1)), perm=[0, 2, 1])  # (N, L, D)
        x = self.node("Pad", x, self.shape(0, 1, 0, 0, 0, 0))
        tokens = weights["pos_embed"].copy()
        tokens[:, :1] += weights["cls_token"]
        return self.node("Add", x, self.constant("pos_embed", tokens))

    def block(self, x: str, name: str, config: ModelConfig) -> str:
        mixed = self.attention(self.layer_norm(x, f"{name}.norm1", config), f"{name}.attn", config)
        x = self.node("Add", x, mixed)
        hidden = self.linear(self.layer_norm(x, f"{name}.norm2", config), f"{name}.mlp.fc1")
        return self.node("Add", x, self.linear(self.gelu(hidden, config), f"{name}.mlp.fc2"))

    def attention(self, x: str, name: str, config: ModelConfig) -> str:
        heads, dim = config.num_heads, config.embed_dim
        qkv = self.node("Split", self.linear(x, f"{name}.qkv"), self.shape(dim, dim, dim), outputs=3, axis=-1)
        by_head = self.shape(0, 0, heads, dim // heads)
        q, k, v = (
            self.node("Transpose", self.node("Reshape", part, by_head), perm=perm)
            for part, perm in ((qkv, [0, 2, 1, 3]), (f"{qkv}:1", [0, 2, 3, 1]), (f"{qkv}:2", [0, 2, 1, 3]))
        )  # (N, heads, 1 + L, D / heads), k transposed
        scores = self.node("MatMul", self.node("Mul", q, self.scalar((dim // heads) ** -0.5)), k)
        mixed = self.node("Transpose", self.node("MatMul", self.node("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        return self.linear(self.node("Reshape", mixed, self.shape(0, 0, dim)), f"{name}.proj")

    def gelu(self, x: str, config: ModelConfig) -> str:
        """x / 2 * (1 + erf(x / sqrt 2)), or its tanh approximation. Runtimes fuse these patterns into one operator."""
        if config.gelu == "exact":
            curve = self.node("Erf", self.node("Div", x, self.scalar(2**0.5)))
        else:
            cube = self.node("Mul", self.node("Pow", x, self.scalar(3.0)), self.scalar(0.044715))
            curve = self.node("Tanh", self.node("Mul", self.node("Add", x, cube), self.scalar((2 / np.pi) ** 0.5)))
        return self.node("Mul", self.node("Mul", x, self.scalar(0.5)), self.node("Add", curve, self.scalar(1.0)))

    def pool(self, x: str, config: ModelConfig) -> str:
        """(N, 1 + L, D) -> (N, D): fc_norm of the mean of the patch tokens, or norm of the cls token."""
        if config.pool == "mean":
            patches = self.node("Slice", x, self.shape(1), self.shape(2**31 - 1), self.shape(1))
            return self.layer_norm(self.node("ReduceMean", patches, axes=[1], keepdims=0), "fc_norm", config)
        cls_token = self.node("Gather", x, self.constant("first", np.array(0, np.int64)), axis=1)
        return self.layer_norm(cls_token, "norm", config)

    def head(self, x: str, config: ModelConfig, *, output: str) -> str:
        if config.head == "linear":
            return self.linear(x, "head", output=output)
        mean, variance = (self.weights[f"head.0.running_{what}"] for what in ("mean", "var"))
        scale = self.constant("head.0.scale", 1 / np.sqrt(variance + np.float32(BATCH_NORM_EPS)))
        x = self.node("Mul", self.node("Sub", x, self.constant("head.0.running_mean", mean)), scale)
        return self.linear(x, "head.1", output=output)
