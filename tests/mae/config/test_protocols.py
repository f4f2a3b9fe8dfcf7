"""A protocol is one file: a new one is found by configs, the command line, the pipeline and evaluation."""

import os
import subprocess
import sys

import pytest

from datasets.base.errors import InputError
from mae.config.load import load_config, parse_config
from mae.config.protocols import frozen_protocols, protocols
from tests.mae.conftest import TINY

DUMMY = '''"""Counts the classes of a split."""

from mae.config.sections import Section
from mae.evaluation.protocol import Score

VERSION = 7


class Settings(Section):
    """Settings of the dummy."""

    share: float = 0.5


def measure(subject, settings):
    yield Score(encoder="pretrained", top1=settings.share, images=1)
'''


def test_the_protocols_of_the_package():
    assert list(protocols()) == ["classify", "finetune", "knn", "linear", "logistic"]
    assert frozen_protocols() == ["knn", "logistic"]
    for name, module in protocols().items():
        assert module.VERSION > 0, name
        assert module.__doc__, name


def test_a_new_file_is_a_protocol_everywhere(trained, records, tiny_yaml, tmp_path):
    """In processes of their own, as $MAE_PROTOCOLS is read when the room is imported."""
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "dummy.py").write_text(DUMMY)
    environment = {**os.environ, "MAE_PROTOCOLS": str(tmp_path / "protocols"), "PYTHONPATH": os.getcwd()}

    def call(*arguments):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    listed = call("-m", "mae", "evaluate", "--help")
    assert "dummy" in listed.stdout
    code = f"""
from mae.config.load import load_config
from tasks.evaluate import protocols
config = load_config({str(tiny_yaml)!r}, ["dummy.share=0.25"])
assert config.section("dummy").share == 0.25
assert protocols(config) == ["dummy", "finetune", "linear", "logistic"], protocols(config)
"""
    found = call("-c", code)
    assert found.returncode == 0, found.stderr
    run, out = trained.run_dir, tmp_path / "out"
    common = ("--data", records, "--config", tiny_yaml, "--out", out, "--workspace", tmp_path)
    measured = call("-m", "mae", "evaluate", run, "--protocol", "dummy", "--set", "dummy.share=0.75", *common)
    assert measured.returncode == 0, measured.stderr
    assert '"top1": 0.75' in (out / "dummy.json").read_text()
    assert '"version": 7' in (out / "dummy.json").read_text()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lgistic.pool=cls", "expected one of .*, found an unknown key; did you mean logistic?"),
        ("logistic.pol=cls", "logistic.pol: expected one of l2, pool, tol, found an unknown key; did you mean pool?"),
        ("logistic.pool=max", "logistic.pool: expected Input should be 'cls' or 'mean', found 'max'"),
    ],
)
def test_sections_of_protocols_are_typed(tiny_yaml, key, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        load_config(tiny_yaml, [key])


def test_a_section_survives_a_copy_and_a_file(tiny_yaml, tmp_path):
    config = load_config(tiny_yaml, ["knn.neighbours=3"])
    again = parse_config(config.model_dump(mode="json"), source="copy")
    assert again == config
    assert again.model_copy(update={"seed": 9}).section("knn").neighbours == 3
    assert again.section("classify") is None
    assert {"logistic", "knn"} <= set(again.model_dump())
    assert TINY.keys() <= set(again.model_dump())
