"""Another package named `datasets`, as Hugging Face's, is installed where Python finds it first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from datasets.sample import unpack_sample

ROOT = Path(__file__).resolve().parents[2]
OURS = f"{ROOT}/datasets/__init__.py"
CONSOLE_SCRIPT = [str(Path(sys.executable).with_name("mae"))]
MODULE = [sys.executable, "-m", "mae"]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with a package that must not be imported."""
    package = tmp_path / "site" / "datasets" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("raise RuntimeError('the foreign package was imported')")
    return tmp_path / "site"


def run(command: list[str], *path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with `path` as PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("installed", ["editable", "in-a-folder"])
@pytest.mark.parametrize("command", [CONSOLE_SCRIPT, MODULE], ids=["console-script", "module"])
def test_command_line_finds_its_own_package(tmp_path: Path, foreign: Path, command: list[str], installed: str) -> None:
    path = [foreign] if installed == "editable" else [foreign, ROOT]
    done = run([*command, "--help"], *path, cwd=tmp_path)
    assert (done.returncode, "sample-data" in done.stdout) == (0, True), done.stderr


def test_child_processes_find_it_too(tmp_path: Path, foreign: Path) -> None:
    """Validation starts worker processes, and a decoder for the file that is not an ordinary JPEG."""
    unpack_sample(tmp_path / "images", train_per_class=2, val_per_class=1)
    picture = next((tmp_path / "images" / "train" / "bag").glob("*.JPEG"))
    Image.open(picture).save(picture.with_name("another.png"))
    done = run([*MODULE, "data", "validate", "images", "--out", "out"], foreign, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["train"], found["val"]) == (21, 10)


@pytest.mark.parametrize("first", ["mae", "flows", "tasks"])
def test_each_package_puts_its_own_root_first(tmp_path: Path, foreign: Path, first: str) -> None:
    child = "import datasets; print(datasets.__file__, flush=True)"
    code = f"import {first}, subprocess, sys; {child}; subprocess.run([sys.executable, '-c', {child!r}])"
    done = run([sys.executable, "-c", code], foreign, ROOT, cwd=tmp_path)
    assert done.stdout.split() == [OURS, OURS], done.stderr


@pytest.mark.parametrize("kind", ["package", "folder"])
def test_foreign_package_imported_first_is_an_error_that_names_both(tmp_path: Path, foreign: Path, kind: str) -> None:
    package = foreign / "datasets" / "__init__.py"
    package.write_text("")
    if kind == "folder":
        package.unlink()
    path = [foreign] if kind == "folder" else [foreign, ROOT]
    done = run([sys.executable, "-c", "import datasets, mae"], *path, cwd=tmp_path)
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"ImportError: datasets: expected maeflow's package {OURS}, found ")
    assert str(foreign / "datasets") in error
    assert "import mae first" in error


def test_foreign_package_installed_over_ours_is_an_error(tmp_path: Path, foreign: Path) -> None:
    (foreign / "datasets" / "__init__.py").write_text("from .arrow_dataset import Dataset")
    (foreign / "mae").mkdir()
    shutil.copy(ROOT / "mae" / "__init__.py", foreign / "mae")
    done = run([sys.executable, "-c", "import mae"], foreign, cwd=tmp_path)
    assert "ImportError: datasets: expected maeflow's package, found Hugging Face's" in done.stderr


def test_nothing_changes_where_ours_is_found(tmp_path: Path) -> None:
    seen = "(sys.path[:], os.environ['PYTHONPATH'])"
    code = f"import os, sys; before = {seen}; import mae; print(before == {seen})"
    done = run([sys.executable, "-c", code], ROOT, cwd=tmp_path)
    assert done.stdout.strip() == "True", done.stderr
