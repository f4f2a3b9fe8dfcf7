"""The steps of training use only operators, and types of them, for which a 910A has kernels.

ascend910_operators.json lists these. A row is an operator of MindSpore, its name in CANN, the types of its inputs and
outputs, and where they come from.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import mindspore as ms
import pytest
from mindspore import ops

from mae.training import task as job
from mae.training.losses import ClassifyLoss
from tests.mae.training.graphs import Graph, training_step

TABLE = json.loads(Path(__file__).with_name("ascend910_operators.json").read_text())["operators"]
REGISTERED = Path(ms.__file__).parent / "ops/_op_impl/tbe"  # in releases up to 2.2
TYPES = {"F16": "float16", "F32": "float32", "BOOL": "bool", "U8": "uint8", "I32": "int32", "I64": "int64"}
STEPS = {
    "pre-training": {"task": "pretrain", "pretrain": {"accum_iter": 2, "clip_grad": 1.0, "ema": 0.9}},
    "fine-tuning": {"task": "finetune"},
    "linear probe": {"task": "linear"},
}


@functools.cache
def step(name: str) -> Graph:
    """A step on an NPU, compiled once: float16, fused layer normalisation, overflow flags."""
    return training_step(depth=1, ascend=True, compute={"dtype": "float16"}, **STEPS[name])


def lacking(graph: Graph) -> list[str]:
    """The operators, and the types of operators, that are not in the table."""
    found = []
    for operator, types in graph.operators().items():
        if operator not in TABLE:
            found.append(operator)
        else:
            found += [f"{operator} {side} {kind}" for side, kind in types if kind not in TABLE[operator][side]]
    return sorted(found)


@pytest.mark.parametrize("name", STEPS)
def test_a_910a_has_kernels_for_the_step(name):
    graph = step(name)
    assert {"LayerNorm", "NPUGetFloatStatusV2", "NPUClearFloatStatusV2", "BatchMatMul"} <= graph.operators().keys()
    assert lacking(graph) == []


class Planted(ClassifyLoss):
    """A loss with operators that a 910A lacks, or has on its scalar units only."""

    def construct(self, images, labels, *drawn):
        loss = super().construct(images, labels, *drawn)
        finite = ops.isfinite(loss).astype(ms.float32)
        ranked, _ = ops.sort(labels.astype(ms.float32))
        wide = ops.exp(loss.astype(ms.float64)).astype(ms.float32)
        return loss + finite + ranked.mean() + wide


def test_planted_operators_are_found(monkeypatch):
    monkeypatch.setattr(job, "ClassifyLoss", Planted)
    found = lacking(training_step("linear", depth=1, ascend=True, compute={"dtype": "float16"}))
    for planted in ("IsFinite", "Sort", "Exp in float64", "Cast out float64"):
        assert any(line.startswith(planted) for line in found), found


def registered() -> dict[str, tuple[set[str], set[str]]]:
    """MindSpore's own list of AI Core kernels: operator -> types of its inputs and of its outputs."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in REGISTERED.glob("*.py"):
        source = path.read_text()
        name = re.search(r'TBERegOp\("(\w+)"\)', source)
        if name:
            inputs, outputs = found.setdefault(name.group(1), (set(), set()))
            count = source.count(".input(")
            for row in re.findall(r"\.dtype_format\(([^)]*)\)", source):
                types = [TYPES.get(kind, kind) for kind in re.findall(r"DataType\.(\w+?)_", row)]
                inputs.update(types[:count])
                outputs.update(types[count:])
    return found


@pytest.mark.skipif(not REGISTERED.is_dir(), reason="this MindSpore has no list of AI Core kernels; 2.0 has one")
def test_the_table_agrees_with_the_registrations_of_an_old_release():
    known = registered()
    assert len(known) > 400
    differing = []
    for operator, row in TABLE.items():
        if row["source"] in ("view", "newer"):
            continue
        inputs, outputs = known.get(operator, (set(), set()))
        for side, types in (("in", inputs), ("out", outputs)):
            if "None" not in types:  # the kernel chooses them itself
                differing += [f"{operator} {side} {kind}" for kind in row[side] if kind not in types]
    assert differing == []
