"""Published names: downloaded once, checked, converted, cached; and the error message without internet."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from mae.weights import hub
from tests.mae.made_weights import TINY
from tests.mae.servers import Served

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

from tests.mae.torch_models import published_weights  # noqa: E402

FETCH = (
    "import sys; from mae.weights import hub; from mae.config.sections import ModelConfig\n"
    "hub.KNOWN['tiny'] = hub.Published('pretrain/tiny.pth', 'mae', ModelConfig(**{sizes}))\n"
    "print(hub.fetch('tiny'))"
)


@pytest.fixture(scope="module")
def weights():
    return published_weights(TINY)


@pytest.fixture
def site(tmp_path, weights, monkeypatch):
    """A mirror of the file `tiny`, an empty cache, and `tiny` as a published name."""
    folder = tmp_path / "mirror" / "mae" / "pretrain"
    folder.mkdir(parents=True)
    torch.save({"model": weights}, folder / "tiny.pth")
    monkeypatch.setitem(hub.KNOWN, "tiny", hub.Published("pretrain/tiny.pth", "mae", TINY))
    monkeypatch.setenv("MAE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Served(tmp_path / "mirror") as server:
        monkeypatch.setenv("MAE_MIRROR", f"{server.url}/mae/")
        yield server


def check(path, weights):
    from safetensors.numpy import load_file

    found = load_file(path)
    assert set(found) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)


def test_a_name_is_downloaded_once_and_then_read_offline(site, weights, tmp_path, monkeypatch, caplog):
    path = hub.fetch("tiny")
    check(path, weights)
    assert "CC BY-NC 4.0, which allows no commercial use" in caplog.text
    source = json.loads((tmp_path / "home" / "tiny" / "source.json").read_text())
    served = tmp_path / "mirror" / "mae" / "pretrain" / "tiny.pth"
    assert source["sha256"] == file_digest(served)
    assert source["address"] == f"{site.url}/mae/pretrain/tiny.pth"
    assert sorted(p.name for p in (tmp_path / "home").rglob("*") if p.is_file()) == ["model.safetensors", "source.json"]
    monkeypatch.setenv("MAE_MIRROR", "http://127.0.0.1:9")
    before = path.stat().st_mtime_ns
    assert hub.fetch("tiny") == path
    assert path.stat().st_mtime_ns == before
    assert len(site.requests) == 1


def test_a_damaged_cache_is_made_again(site, weights, caplog):
    path = hub.fetch("tiny")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    check(hub.fetch("tiny"), weights)
    assert "content has changed" in caplog.text
    assert len(site.requests) == 2


def test_two_processes_at_once_download_once(site, weights, tmp_path):
    code = FETCH.format(sizes=TINY.model_dump())

    def run(_):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, range(2)))
    for result in results:
        assert result.returncode == 0, result.stderr
        check(result.stdout.strip(), weights)
    assert len(site.requests) == 1


def test_without_network_the_error_says_where_to_put_the_file_and_that_works(site, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("MAE_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(InputError) as error:
        hub.fetch("tiny")
    place = tmp_path / "home" / "downloads" / "tiny.pth"
    assert f"fetch {hub.PUBLISHER}/pretrain/tiny.pth on a machine with internet and put it at {place}" in str(
        error.value
    )
    place.write_bytes((tmp_path / "mirror" / "mae" / "pretrain" / "tiny.pth").read_bytes())
    check(hub.fetch("tiny"), weights)
    assert place.is_file()  # the user's file is kept
    assert site.requests == []


@pytest.mark.parametrize(
    ("name", "expected", "kept"),
    [("downloaded", "MD5 8cad7c", False), ("put there", "MD5 8cad7c", True)],
)
def test_a_wrong_digest_is_refused(site, tmp_path, monkeypatch, name, expected, kept):
    """mae_vit_base_p16_encoder has a published digest; the mirror has another file under its name."""
    file = tmp_path / "mirror" / "mae" / "pretrain" / "mae_pretrain_vit_base.pth"
    file.write_bytes(b"something else")
    place = tmp_path / "home" / "downloads" / file.name
    if kept:
        place.parent.mkdir(parents=True)
        place.write_bytes(b"something else")
    with pytest.raises(InputError, match=expected) as error:
        hub.fetch("mae_vit_base_p16_encoder")
    assert "MD5 6c7ba9c5a141421e1c03cb9807c97c74" in str(error.value), name  # md5sum of "something else"
    assert place.is_file() == kept
    assert not (tmp_path / "home" / "mae_vit_base_p16_encoder" / "model.safetensors").exists()


def test_a_download_that_is_not_weights_is_deleted(site, tmp_path):
    (tmp_path / "mirror" / "mae" / "pretrain" / "tiny.pth").write_bytes(b"<html>please log in</html>")
    with pytest.raises(InputError, match=r"tiny\.pth"):
        hub.fetch("tiny")
    assert not (tmp_path / "home" / "downloads" / "tiny.pth").exists()


@pytest.mark.parametrize(
    ("name", "mirror", "message"),
    [
        ("mae_vit_base_p61", None, "did you mean mae_vit_base_p16"),
        ("resnet", None, "expected a path, or one of mae_vit_base_p16"),
        ("tiny", "ftp://example.org", "MAE_MIRROR: expected an http"),
        ("tiny", "/data/weights", "MAE_MIRROR: expected an http"),
    ],
)
def test_unknown_names_and_mirrors_are_named(site, monkeypatch, name, mirror, message):
    if mirror is not None:
        monkeypatch.setenv("MAE_MIRROR", mirror)
    with pytest.raises(InputError, match=message):
        hub.fetch(name)


@pytest.mark.parametrize(
    ("name", "file", "kind", "md5", "parameters"),
    [
        ("mae_vit_base_p16", "pretrain/mae_pretrain_vit_base_full.pth", "mae", None, 111.91),
        ("mae_vit_large_p16", "pretrain/mae_pretrain_vit_large_full.pth", "mae", None, 329.54),
        ("mae_vit_huge_p14", "pretrain/mae_pretrain_vit_huge_full.pth", "mae", None, 657.07),
        ("mae_vit_base_p16_visualize", "visualize/mae_visualize_vit_base.pth", "mae", None, None),
        ("mae_vit_large_p16_encoder", "pretrain/mae_pretrain_vit_large.pth", "encoder", "b8b06e", None),
        ("mae_vit_huge_p14_finetuned", "finetune/mae_finetuned_vit_huge.pth", "classifier", "2541f2", None),
    ],
)
def test_names_and_addresses_are_the_published_ones(monkeypatch, name, file, kind, md5, parameters):
    """Millions of parameters: mmpretrain's metafile."""
    monkeypatch.delenv("MAE_MIRROR", raising=False)
    found = hub.known(name)
    assert (found.file, found.kind, found.md5) == (file, kind, md5)
    assert found.address == f"https://dl.fbaipublicfiles.com/mae/{file}"
    assert found.model.norm_pix_loss == ("visualize" not in name)
    if parameters is not None:
        c = found.model
        side, values = c.grid[0] * c.grid[1] + 1, 3 * c.patch_size**2

        def stack(dim, depth):
            return depth * (12 * dim * dim + 13 * dim) + 2 * dim

        encoder = stack(c.embed_dim, c.depth) + (values + 1) * c.embed_dim + c.embed_dim * (side + 1)
        decoder = stack(512, 8) + (c.embed_dim + 1) * 512 + 513 * values + 512 * (side + 1)
        assert (encoder + decoder) / 1e6 == pytest.approx(parameters, abs=0.01)


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.delenv("MAE_HOME", raising=False)
    assert str(hub.home()) == os.path.expanduser("~/.cache/maeflow")
