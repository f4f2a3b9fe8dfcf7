"""README.md and docs/: links, commands, options, targets, configs and files that they name exist."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from datasets.manifest.faults import FAULTS
from flows import embedded
from mae.cli import app
from mae.config.load import load_config
from mae.weights.architecture import SETTINGS as MODEL_SETTINGS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MAE = typer.main.get_command(app)
HOSTS = {"github.com", "127.0.0.1:4200"}
EXAMPLE_ROOTS = {"data", "dev", "etc", "root", "shared", "tmp"}  # of absolute paths: a user's, the system's
SECTIONS = ("data", "model", "device", "compute", "evaluate", "pretrain", "finetune", "linear", "logistic", "knn")
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
COMMENTED = pytest.mark.parametrize("file", [*PAGES, *CONFIGS], ids=lambda file: file.name)


def code_lines(text: str) -> Iterator[str]:
    """Yield the lines of fenced and indented code blocks without comments; continued lines are joined."""
    fenced, joined = False, ""
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            joined += line.strip()
            if joined.endswith("\\"):
                joined = joined[:-1]
            else:
                yield re.sub(r"\s+#.*", "", joined)
                joined = ""


def code(file: Path) -> list[str]:
    """Return all code of a page, or of the comments of a config: lines of blocks, and inline code."""
    text = file.read_text()
    if file.suffix == ".yaml":
        head = "\n".join(line[2:] for line in text.splitlines() if line.startswith("# "))
        return [re.sub(r"\s{2,}\(.*", "", line) for line in code_lines(head.replace("\n  ", "\n    "))]
    outside = re.sub(r"^```.*?^```|^    .*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [*code_lines(text), *(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", outside))]


def commands(file: Path, start: str) -> list[list[str]]:
    """Return the words after `start` in each command of a page that begins with it."""
    found = []
    for line in code(file):
        match = re.search(rf"(?:^|do |&& )(?:\w+=\S+ )?(?:\.venv/bin/)?(?:{start})(?: |$)([^;&]*)", line)
        if match is not None:
            found.append(shlex.split(match[1]))
    return found


def settings(words: list[str]) -> list[str]:
    """Return the values of --set; a shell's variable becomes 0."""
    return [re.sub(r"\$\w+", "0", value) for option, value in pairwise(words) if option == "--set"]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@PAGE
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        address = urlsplit(target)
        if address.scheme:
            assert address.netloc in HOSTS, target
            continue
        file = (page.parent / address.path).resolve() if address.path else page
        assert file.exists(), target
        assert not address.fragment or address.fragment in anchors(file), target


@PAGE
def test_every_page_of_docs_is_linked_from_the_readme(page):
    assert page.name == "README.md" or f"(docs/{page.name})" in (ROOT / "README.md").read_text()


@COMMENTED
def test_commands_of_mae_exist_with_their_options(file):
    for words in commands(file, r"mae"):
        command: Any = MAE
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, f"no command {words[0]!r} in: mae {' '.join(words)}"
            command, words = command.commands[words[0]], words[1:]
        context = typer.Context(command, info_name=command.name)
        command.make_parser(context).parse_args(list(words))  # raises if an option is unknown


@pytest.mark.parametrize(("line", "error"), [("mae train x.yaml --rezume", "--rezume"), ("mae data chek x", "chek")])
def test_a_wrong_command_is_found(tmp_path, line, error):
    page = tmp_path / "page.md"
    page.write_text(f"    {line}\n")
    with pytest.raises(Exception, match=error):
        test_commands_of_mae_exist_with_their_options(page)


@COMMENTED
def test_keys_of_set_exist(file):
    for words in commands(file, r"mae train|mae plan|mae evaluate"):
        named = [word for word in words if word.startswith("configs/")]
        load_config(ROOT / (named[0] if named else "configs/demo.yaml"), settings(words))
    for words in commands(file, r"python -m flows\.pretrain"):
        load_config(ROOT / words[0], settings(words))
    for words in commands(file, r"mae convert"):
        assert {value.partition("=")[0] for value in settings(words)} <= set(MODEL_SETTINGS)


@PAGE
def test_keys_in_the_text_exist(page):
    for section, key in re.findall(rf"`({'|'.join(SECTIONS)})\.([a-z_0-9]+)\b", page.read_text()):
        assert key in ("py", "safetensors") or f"| `{key}` |" in described(section), f"{section}.{key}"


def described(name: str) -> str:
    """Return a section of docs/config.md."""
    text = (ROOT / "docs" / "config.md").read_text()
    return next(part for part in text.split("\n## ") if part.startswith(f"{name}\n"))


@COMMENTED
def test_commands_of_the_chain_parse(file):
    for words in commands(file, r"python -m flows\.pretrain"):
        assert isinstance(embedded._parse(words), argparse.Namespace)


@COMMENTED
def test_deployments_exist_with_their_parameters(file):
    known = {
        item["name"]: item["entrypoint"] for item in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    }
    for words in commands(file, "prefect deployment run"):
        assert words[0].rpartition("/")[2] in known, words[0]
        module, _, function = known[words[0].rpartition("/")[2]].rpartition(".")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        arguments = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function).args.args
        given = {value.partition("=")[0] for option, value in pairwise(words) if option == "-p"}
        assert given <= {argument.arg for argument in arguments}, words
        overrides = [value.partition("=")[2] for value in words if value.startswith("overrides=")]
        config = next((value.partition("=")[2] for value in words if value.startswith("config=")), "configs/demo.yaml")
        load_config(ROOT / config, [change for text in overrides for change in yaml.safe_load(text)])


@COMMENTED
def test_make_targets_exist(file):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {words[0] for words in commands(file, "make") if words}
    assert named <= targets


@COMMENTED
def test_modules_that_are_run_exist_with_their_options(file):
    for line in code(file):
        match = re.search(r"python -m ((?:tests|mae|flows)\.[\w.]+)(.*)", line)
        if match is None:
            continue
        source = ROOT / (match[1].replace(".", "/") + ".py")
        assert source.is_file(), line
        for option in re.findall(r"(?<= )--[a-z-]+", match[2]) if match[1].startswith("tests.") else ():
            assert f'"{option}"' in source.read_text(), line


@COMMENTED
def test_files_that_are_named_exist(file):
    for path in re.findall(
        r"(?<![\w/.~-])((?:configs|datasets|docs|flows|mae|tasks|tests)/[\w./-]*\w\.\w+)", file.read_text()
    ):
        assert (ROOT / path).exists(), path


@COMMENTED
def test_only_public_places_are_named(file):
    text = file.read_text()
    for address in re.findall(r"https?://[^\s)`\"']+", text):
        assert urlsplit(address).netloc in HOSTS, address
    for root in re.findall(r"(?<![\w.}~/>-])/([a-z]+)/", re.sub(r"https?://\S+", "", text)):
        assert root in EXAMPLE_ROOTS, f"/{root}/"


def test_the_number_of_faults_is_right():
    assert f"It knows {len(FAULTS)} kinds of fault" in (ROOT / "docs" / "data.md").read_text()


def test_the_example_of_a_protocol_is_found(tmp_path):
    page = (ROOT / "docs" / "evaluation.md").read_text()
    example = re.search(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "nearest_mean.py").write_text(example[1])
    command, environment = [sys.executable, "-m", "mae.config.docs"], {**os.environ, "MAE_PROTOCOLS": str(tmp_path)}
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert "## nearest_mean\n" in printed


def test_every_room_is_in_the_architecture():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for package in ("mae", "datasets"):
        for room in (ROOT / package).glob("*/__init__.py"):
            assert f"| `{room.parent.name}/` |" in page, room.parent
        for file in (ROOT / package).glob("[a-z]*.py"):
            assert f"`{file.name}`" in page, file
