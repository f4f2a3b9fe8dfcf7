"""constraints/venv chooses Python and MindSpore, or says in one line what to do. The interpreters are fakes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = "cat chmod cp cut dirname find getconf grep head mkdir rm sed sh sort touch uname"
PYTHON = """#!/bin/sh
case "$*" in
    *sys.exit*) case "$*" in *"'{number}'"*) exit 0 ;; *) exit 1 ;; esac ;;
    -c*) echo {number} ;;
    "-m venv"*)
        rm -rf "$4"
        mkdir -p "$4/bin"
        printf '#!/bin/sh\\necho pip "$@"\\n' >"$4/bin/pip"
        chmod +x "$4/bin/pip"
        ;;
esac
"""


class Machine:
    """A copy of constraints/ on a machine with chosen interpreters and a chosen CANN."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder / "project", folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        shutil.copytree(ROOT / "constraints", self.folder / "constraints")
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        self.cann = folder / "cann"

    def add(self, *numbers: str) -> Machine:
        for number in numbers:
            path = self.bin / f"python{number}"
            path.write_text(PYTHON.replace("{number}", number))
            path.chmod(0o755)
        return self

    def add_cann(self, version: str) -> Machine:
        info = self.cann / f"{os.uname().machine}-linux" / "ascend_toolkit_install.info"
        info.parent.mkdir(parents=True)
        info.write_text(f"package_name=Ascend-cann-toolkit\nversion={version}\nos=linux\n")
        return self

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        known = {"PATH": str(self.bin), "HOME": str(self.folder), "ASCEND_HOME_PATH": str(self.cann)}
        command = [str(self.folder / "constraints" / "venv"), *(arguments or (".venv",))]
        return subprocess.run(command, env={**known, **variables}, capture_output=True, text=True, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("name", "pythons", "cann", "variables", "chosen"),
    [
        ("3.11 first", ("3.9", "3.10", "3.11", "3.12"), None, {}, "mindspore2.10.0-py3.11"),
        ("Ubuntu 22.04", ("3.10",), None, {}, "mindspore2.10.0-py3.10"),
        ("Ubuntu 24.04", ("3.12",), None, {}, "mindspore2.10.0-py3.12"),
        ("by hand", ("3.11", "3.12"), None, {"PYTHON": "python3.12"}, "mindspore2.10.0-py3.12"),
        ("CANN 8.1", ("3.11", "3.12"), "8.1.RC1", {}, "mindspore2.7.0-py3.11"),
        ("CANN 8.2", ("3.10",), "8.2.RC1", {}, "mindspore2.7.0-py3.10"),
        ("CANN 7.0", ("3.11",), "7.0.0", {}, "mindspore2.10.0-py3.11"),
        ("release by hand", ("3.11",), "9.0.0", {"MINDSPORE": "2.7.0"}, "mindspore2.7.0-py3.11"),
    ],
)
def test_choice(machine, name, pythons, cann, variables, chosen):
    machine.add(*pythons)
    if cann is not None:
        machine.add_cann(cann)
    done = machine.run(**variables)
    assert done.returncode == 0, done.stderr
    assert f"constraints/{chosen}.txt" in done.stdout
    assert "pip install --quiet --only-binary :all: -e . -c .venv/constraints.txt" in done.stdout
    expected = (machine.folder / "constraints" / f"{chosen}.txt").read_text()
    assert (machine.folder / ".venv" / "constraints.txt").read_text() == expected


def test_the_choice_is_kept_until_another_is_made(machine):
    machine.add("3.11", "3.12")
    assert "py3.12" in machine.run(PYTHON="python3.12").stdout
    assert machine.run().stdout == ""
    assert "py3.12" in machine.run(".venv", "test").stdout
    assert "py3.11" in machine.run(PYTHON="python3.11").stdout


def test_ranks_with_a_wheel(machine, tmp_path):
    wheel = tmp_path / "mindspore-2.2.14-cp39-cp39-linux_aarch64.whl"
    machine.add("3.9").run(".venv-ranks", "", "2.0.0", MINDSPORE=str(wheel))
    assert "mindspore==" not in (machine.folder / ".venv-ranks" / "constraints.txt").read_text()
    assert machine.run(".venv-ranks", "", "2.0.0").stdout == ""


@pytest.mark.parametrize(
    ("name", "pythons", "cann", "variables", "message"),
    [
        ("no Python", ("3.9",), None, {}, "no Python 3.11 3.10 3.12 .*apt install python3-venv.*openEuler"),
        ("3.9 for the pipeline", ("3.9",), "8.1.RC1", {"PYTHON": "python3.9"}, "3.10 or newer .*make ranks-env"),
        ("not there", (), None, {"PYTHON": "python3.12"}, "no such interpreter.*apt install python3.12-venv"),
        ("too new", ("3.13",), None, {"PYTHON": "python3.13"}, "expected Python 3.11 3.10 3.12 .*found 3.13"),
        ("unknown release", ("3.11",), None, {"MINDSPORE": "2.5.0"}, "expected 2.10.0, 2.7.0, 2.0.0"),
        ("unknown CANN", ("3.11",), "9.0.0", {}, "expected CANN 7, 8.1 or 8.2, found 9.0.0; .*MINDSPORE=2.7.0"),
    ],
)
def test_one_line_says_what_to_do(machine, name, pythons, cann, variables, message):
    machine.add(*pythons)
    if cann is not None:
        machine.add_cann(cann)
    refused(machine.run(**variables), message)


def test_an_old_glibc_is_refused(machine):
    (machine.bin / "getconf").unlink()
    (machine.bin / "getconf").write_text("#!/bin/sh\necho glibc 2.17\n")
    (machine.bin / "getconf").chmod(0o755)
    refused(machine.add("3.11").run(), "expected glibc 2.28 or newer, .*found 2.17")


def refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr), done.stderr
