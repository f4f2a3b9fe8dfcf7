"""Interpreters that cannot run ranks are refused at once, with the command that changes it."""

import os
import re
import sys
import time
import venv
from pathlib import Path

import pytest

from datasets.base.errors import InputError
from mae.launch import check_interpreter, run_ranks
from mae.launch.interpreter import NEEDED

ROOT = Path(__file__).parents[3]
LAUNCHER_ONLY = {"rich", "tensorboardX", "matplotlib", "jinja2", "typer", "prefect"}


@pytest.fixture
def environment(tmp_path):
    """Make a virtual environment that has only the packages of the ranks, as empty modules, but for some changes."""

    def make(without=(), **versions):
        venv.create(tmp_path / "env", symlinks=True, with_pip=False)
        (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
        for name in NEEDED.keys() - set(without):
            (packages / name).mkdir()
            (packages / name / "__init__.py").write_text("raise RuntimeError('imported')")
        for name, version in {"mindspore": "2.7.0", "numpy": "1.26.4", **versions}.items():
            if name not in without:
                (packages / name / "version.py").write_text(f"short_version = full_version = '{version}'\n")
        return packages, str(tmp_path / "env/bin/python")

    return make


def test_an_environment_of_ranks_is_accepted_from_any_folder(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, python = environment()
    found = check_interpreter(python)
    assert found.path == python
    assert found.python == sys.version.split()[0]
    assert (found.mindspore, found.numpy, found.cann) == ("2.7.0", "1.26.4", None)


@pytest.mark.parametrize(
    ("without", "versions", "found"),
    [
        pytest.param(
            ["mindspore"],
            {},
            "found no mindspore; install what is missing: {python} -m pip install mindspore (docs/ascend.md ",
            id="no MindSpore",
        ),
        pytest.param(
            ["yaml", "PIL"], {}, "found no pillow, pyyaml; .* {python} -m pip install pillow pyyaml", id="no YAML"
        ),
        pytest.param(
            [],
            {"numpy": "2.1.0", "mindspore": "2.10.0"},
            "expected NumPy 1, because it has MindSpore 2.10.0, found NumPy 2.1.0; "
            "run {python} -m pip install 'numpy<2'",
            id="NumPy 2",
        ),
    ],
)
def test_a_wrong_environment_is_refused_with_its_cure(environment, tmp_path, without, versions, found):
    _, python = environment(without, **versions)
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        run_ranks(["-c", ""], ranks=1, log_dir=tmp_path / "logs", run_dir=tmp_path / "run", python=python)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert message.startswith(f"device.python: {python}: expected ")
    assert all(part.format(python=python) in message for part in found.split(".*"))
    assert not (tmp_path / "run").exists()


def test_a_foreign_datasets_is_refused_only_where_it_would_be_imported(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packages, python = environment()
    foreign = packages / "datasets/__init__.py"
    foreign.parent.mkdir()
    foreign.write_text("")
    check_interpreter(python)  # the ranks find this project's package first
    (packages / "first.pth").write_text(f"import sys; sys.path.insert(0, {str(packages)!r})\n")
    with pytest.raises(InputError) as caught:
        check_interpreter(python)
    assert f"expected maeflow's datasets, {ROOT}/datasets/__init__.py, found another {foreign}" in str(caught.value)
    assert f"{python} -m pip uninstall datasets" in str(caught.value)


@pytest.mark.parametrize(
    ("prints", "message"),
    [
        pytest.param(
            """echo '{"python": "3.8.18", "mindspore": "1.10.1", "numpy": "1.24.4", "cann": null, "places": {}}'""",
            "expected Python 3.9 or newer, found Python 3.8.18; make another environment",
            id="Python 3.8",
        ),
        pytest.param("echo oops >&2; exit 3", "found exit code 3 and 'oops'", id="no Python"),
        pytest.param("exec sleep 100", "found no answer in 1 s", id="no answer"),
    ],
)
def test_a_program_that_is_no_python_for_ranks_is_refused(tmp_path, monkeypatch, prints, message):
    monkeypatch.setattr("mae.launch.interpreter.ASK_SECONDS", 1)
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{prints}\n")
    program.chmod(0o755)
    with pytest.raises(InputError) as caught:
        check_interpreter(str(program))
    assert message in str(caught.value)


@pytest.mark.parametrize("variable", ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"])
def test_release_of_cann(environment, tmp_path, monkeypatch, variable):
    info = tmp_path / "latest/aarch64-linux/ascend_toolkit_install.info"
    info.parent.mkdir(parents=True)
    info.write_text("package_name=Ascend-cann-toolkit\nversion=8.1.RC1\ninnerversion=V100R001\n")
    monkeypatch.setenv(variable, str(tmp_path / "latest"))
    assert check_interpreter(environment()[1]).cann == "8.1.RC1"


def test_each_dependency_is_asked_for():
    block = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert set(re.findall(r'"([\w-]+)', block[1])) == set(NEEDED.values()) | LAUNCHER_ONLY


def test_this_interpreter_is_accepted():
    found = check_interpreter()
    assert os.path.samefile(found.path, sys.executable)
    assert found.mindspore is not None
