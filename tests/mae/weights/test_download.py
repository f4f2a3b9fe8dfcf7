"""Downloads from real servers: whole, or not at all."""

import time
import urllib.error

import numpy as np
import pytest

from mae.weights import download as module
from mae.weights.download import NETWORK_ERRORS, download
from tests.mae.servers import Cut, Served


@pytest.fixture
def content():
    return np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def site(tmp_path, content, monkeypatch):
    """A server with one file."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "w.pth").write_bytes(content)
    with Served(folder) as server:
        yield server


def test_a_file_arrives_whole_with_progress(site, content, tmp_path, capsys):
    download(f"{site.url}/w.pth", tmp_path / "in" / "w.pth")
    assert (tmp_path / "in" / "w.pth").read_bytes() == content
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["w.pth"]
    assert "w.pth: 3 of 3 MB" in capsys.readouterr().err


@pytest.mark.parametrize("hang", [False, True])
def test_a_cut_connection_is_an_error_and_the_next_call_starts_over(site, content, tmp_path, monkeypatch, hang):
    monkeypatch.setattr(module, "SECONDS", 0.5)
    path = tmp_path / "w.pth"
    with Cut(site.port, [1_000_000], hang=hang) as cut:
        with pytest.raises(NETWORK_ERRORS):
            download(f"{cut.url}/w.pth", path)
        assert not path.exists()
        download(f"{cut.url}/w.pth", path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "address", "error"),
    [
        ("nobody listens", "http://127.0.0.1:9/w.pth", urllib.error.URLError),
        ("no such file", "{site}/none.pth", urllib.error.HTTPError),
    ],
)
def test_what_cannot_be_had_fails_at_once(site, tmp_path, name, address, error):
    started = time.monotonic()
    with pytest.raises(error):
        download(address.format(site=site.url), tmp_path / "w.pth")
    assert time.monotonic() - started < 5, name
    assert not (tmp_path / "w.pth").exists()


def test_an_encrypted_address_does_not_lead_to_a_plain_one():
    request = module.urllib.request.Request("https://example.org/w.pth")
    with pytest.raises(urllib.error.URLError, match="not encrypted"):
        module._StaySecure().redirect_request(request, None, 302, "Found", {}, "http://example.org/w.pth")
    assert module._StaySecure().redirect_request(request, None, 302, "Found", {}, "https://example.org/other")
