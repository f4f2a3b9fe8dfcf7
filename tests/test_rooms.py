"""The rooms of mae/ and datasets/: each is described, gives out few names, and is entered by its door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.parent for package in ("mae", "datasets") for path in (ROOT / package).glob("*/__init__.py"))
OPEN = ("datasets.base",)  # the one room whose files may be imported directly: everything stands on it
MOST_NAMES = 6


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("room", ROOMS, ids=dotted)
def test_a_room_says_what_it_is_for(room):
    tree = ast.parse((room / "__init__.py").read_text())
    assert "ead " in (ast.get_docstring(tree) or ""), "say what the room is for and which file to read first"
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    assert 1 <= len(names) <= MOST_NAMES
    package = __import__(dotted(room), fromlist=names)
    assert all(hasattr(package, name) for name in names)


def imported(path: Path) -> set[str]:
    """What a file imports, as `package.module` or `package.module.name`; types that it needs for annotations only do
    not count."""
    found, tree = set(), ast.parse(path.read_text())
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in for_types for inner in ast.walk(node)}
    for node in (node for node in ast.walk(tree) if id(node) not in skipped):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize(
    ("importer", "owner"),
    [("flows", "mae"), ("tasks", "mae"), ("flows", "datasets"), ("tasks", "datasets"), ("mae", "datasets")],
)
def test_nobody_reaches_past_a_room_from_another_package(importer, owner):
    files = {dotted(path) for room in ROOMS for path in room.glob("*.py") if path.name != "__init__.py"}
    files = {name for name in files if name.startswith(f"{owner}.") and not name.startswith(OPEN)}
    doors = {f"{dotted(room)}.{name}" for room in ROOMS for name in __import__(dotted(room), fromlist=["x"]).__all__}
    reached = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / importer).rglob("*.py")
        for name in imported(path)
        if name not in doors and any(name == file or name.startswith(f"{file}.") for file in files)
    }
    assert sorted(reached) == []
