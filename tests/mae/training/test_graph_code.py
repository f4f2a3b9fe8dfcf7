"""The Python code that MindSpore compiles keeps to what the oldest supported release, 2.0, understands."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3] / "mae"
# What the parser of MindSpore 2.0 knows (mindspore/ccsrc/pipeline/jit/parse/parse.cc, BuildMethodMap).
STATEMENTS = "Return Expr If Assign While For FunctionDef AugAssign Global Break Continue Pass Raise Assert With"
EXPRESSIONS = (
    "BinOp Name Constant Call IfExp Attribute Compare BoolOp Lambda Tuple List Subscript Slice UnaryOp Dict ListComp "
    "GeneratorExp JoinedStr FormattedValue"
)
KNOWN = {*STATEMENTS.split(), *EXPRESSIONS.split()}
UPDATES = {"assign", "assign_add", "assign_sub"}  # operators of mindspore.ops that change their first argument
ADAM = 3  # ops.Adam changes its first three arguments
FRAMEWORK = {"mindspore", "ms", "ops", "nn"}


class Function(NamedTuple):
    """A function that MindSpore compiles."""

    where: str
    node: ast.FunctionDef
    modules: set[str]  # names of the Python modules that its file imports, without MindSpore's


def graph_functions(sources: dict[str, str]) -> list[Function]:
    """The methods of all cells except `__init__`, and the functions of the same files that these use."""
    trees = {name: ast.parse(source) for name, source in sources.items()}
    cells, found = {"Cell"}, []
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while grown := {c.name for c in classes if {ast.unparse(b).split(".")[-1] for b in c.bases} & cells} - cells:
        cells |= grown
    for name, tree in trees.items():
        modules = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names} - FRAMEWORK
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        left = [
            method
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.name in cells
            for method in node.body
            if isinstance(method, ast.FunctionDef) and method.name != "__init__"
        ]
        while left:
            node = left.pop()
            found.append(Function(f"{name}:{node.lineno} {node.name}", node, modules))
            used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            left += [functions.pop(other) for other in used & functions.keys()]
    return found


def refused(function: Function) -> list[str]:
    """What MindSpore 2.0 does not compile, or compiles to something else."""
    return [*unknown_syntax(function), *late_reads(function)]


def unknown_syntax(function: Function) -> Iterator[str]:
    """Syntax that the parser does not know, and Python modules, whose numbers it takes for integers."""
    calls = [n for n in ast.walk(function.node) if isinstance(n, ast.Call)]
    spread = {id(argument) for call in calls for argument in call.args if isinstance(argument, ast.Starred)}
    for statement in function.node.body:
        for node in ast.walk(statement):
            kind = type(node).__name__
            if isinstance(node, (ast.stmt, ast.expr)) and kind not in KNOWN and id(node) not in spread:
                yield f"{kind}: {ast.unparse(node)}"
            if isinstance(node, ast.Name) and node.id in function.modules:
                yield f"module {node.id}"


def late_reads(function: Function) -> list[str]:
    """Parameters that are read after an assignment: MindSpore 2.0 gives their old value."""
    return _Reads().block(function.node.body, set())


class _Reads:
    """Follows one function in the order in which it is computed."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.late: list[str] = []

    def block(self, statements: list[ast.stmt], changed: set[str]) -> list[str]:
        for statement in statements:
            if isinstance(statement, (ast.If, ast.For, ast.While)):
                self.visit(statement.test if not isinstance(statement, ast.For) else statement.iter, changed)
                branches = [set(changed), set(changed)]
                self.block(statement.body, branches[0])
                self.block(statement.orelse, branches[1])
                changed |= branches[0] | branches[1]
                continue
            self.visit(statement, changed)
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self.aliases[statement.targets[0].id] = self.name(statement.value)
        return self.late

    def visit(self, node: ast.AST, changed: set[str]) -> None:
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
            name = self.name(node)
            self.late += [name for other in changed if name == other or (other.endswith("()") and _of(name, other))]
            return
        if not isinstance(node, ast.Call):
            for child in ast.iter_child_nodes(node):
                self.visit(child, changed)
            return
        operator = ast.unparse(node.func).split(".")[-1]
        count = 1 if operator in UPDATES else ADAM if operator == "adam" else 0
        for argument in [*node.args[count:], *(keyword.value for keyword in node.keywords)]:
            self.visit(argument, changed)
        changed |= {self.name(argument) for argument in node.args[:count]}
        if isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name):
            self.visit(node.func.value, changed)  # `self.scale.value()` reads self.scale
        name = self.name(node.func)
        if name.startswith("self.") and not count:
            changed.add(f"{name}()")  # a cell, which may change its own parameters

    def name(self, node: ast.AST) -> str:
        """The expression, with `state.scale` written as `self.loss_scale.scale` after `state = self.loss_scale`."""
        first, _, rest = ast.unparse(node).partition(".")
        return ".".join(filter(None, [self.aliases.get(first, first), rest]))


def _of(name: str, call: str) -> bool:
    """Whether `name` is a parameter of the cell that was called: one that some cell changes under this name."""
    owner = call.removesuffix("()")
    return name.startswith(f"{owner}.") and name.removeprefix(f"{owner}.").split(".")[0] in changed_attributes()


@functools.cache
def changed_attributes() -> set[str]:
    """Names of the attributes that the project's cells change: `scale` for `ops.assign(self.scale, ...)`."""
    names = set()
    for function in graph_functions(project()):
        for call in ast.walk(function.node):
            if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in UPDATES:
                names.add(ast.unparse(call.args[0]).removeprefix("self."))
    return names


@functools.cache
def project() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.rglob("*.py")}


def test_all_graph_code_suits_the_oldest_release():
    functions = graph_functions(project())
    names = {function.node.name for function in functions}
    assert {"construct", "bprop", "encode_visible", "trust_ratio", "patchify", "_step", "_finite"} <= names
    assert {f.where: found for f in functions if (found := refused(f))} == {}


CELL = """
import math
import numpy as np
from mindspore import nn, ops
class Base(nn.Cell): pass
class Planted(Base):
    def construct(self, x, *more):
        {code}
        return x
def helper(x):
    return x * math.pi
"""
LINE = "\n" + 12 * " "  # into the body of an `if`


@pytest.mark.parametrize(
    ("name", "code", "found"),
    [
        ("starred element", "x = ops.concat((x, *more))", "Starred: *more"),
        ("in a list", "x = ops.stack([x, *more])", "Starred: *more"),
        ("math", "x = x * math.sqrt(0.5)", "module math"),
        ("math in a function", "x = helper(x)", "module math"),
        ("NumPy", "x = x + np.pi", "module np"),
        ("assignment in an expression", "x = (y := x) + y", "NamedExpr: (y := x)"),
        ("annotated assignment", "x: int = x", "AnnAssign: x: int = x"),
        ("dictionary comprehension", "x = {k: k for k in more}", "DictComp: {k: k for k in more}"),
        ("read after assign", "y = ops.assign(self.p, x); x = y + self.p", "self.p"),
        ("value after assign", "y = ops.assign_add(self.p, x); x = y + self.p.value()", "self.p"),
        ("in one expression", "x = ops.assign(self.p, x) + self.p", "self.p"),
        ("after a branch", f"if x > 0:{LINE}x = ops.assign(self.p, x){LINE[:-4]}x = self.p", "self.p"),
        ("after Adam", "y = self.adam(self.p, self.m, self.v, x); x = self.m", "self.m"),
        ("of another cell", "y = self.loss_scale(x); x = self.loss_scale.scale", "self.loss_scale.scale"),
        (
            "under another name",
            "y = self.loss_scale(x); s = self.loss_scale; x = s.scale.value()",
            "self.loss_scale.scale",
        ),
    ],
)
def test_planted_code_is_refused(name, code, found):
    functions = graph_functions({"planted.py": CELL.format(code=code)})
    assert found in [fault for function in functions for fault in refused(function)], name


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("arguments", "x = self.f(x, *more)"),
        ("read before", "y = self.p * 2; x = y + ops.assign(self.p, x)"),
        ("read by the assignment", "x = ops.assign(self.p, self.p + x)"),
        ("in the other branch", f"if x > 0:{LINE}x = ops.assign(self.p, x){LINE[:-4]}else:{LINE}x = self.p * 2"),
    ],
)
def test_good_code_is_not(name, code):
    functions = graph_functions({"good.py": CELL.format(code=code)})
    assert [fault for function in functions for fault in refused(function)] == [], name
