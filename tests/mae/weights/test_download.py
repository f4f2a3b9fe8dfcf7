"""Downloads from real servers: resumed or started over, never mixed."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error

import numpy as np
import pytest

from mae.weights import download as module
from mae.weights.download import NETWORK_ERRORS, download
from tests.mae.servers import Cut, Served, served_without_ranges

SIZE = 3_000_000


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def content():
    return np.random.default_rng(0).bytes(SIZE)


@pytest.fixture
def site(tmp_path, content):
    """A server with one file."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "w.pth").write_bytes(content)
    with Served(folder) as server:
        yield server


def leave_part(address, path, head):
    """Make the files of a download that was killed after len(head) bytes."""
    port = int(address.split(":")[2].split("/")[0])
    with Cut(port, [1 << 16, 1, 1], hang=True) as cut, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SECONDS", 0.3)
        patch.setattr(module, "ATTEMPTS", 1)
        with pytest.raises(NETWORK_ERRORS):
            download(f"{cut.url}/w.pth", path)
    facts = path.with_name("w.pth.part.json")
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "address": address}))
    path.with_name("w.pth.part").write_bytes(head)


def test_a_file_arrives_whole_with_progress(site, content, tmp_path, capsys):
    download(f"{site.url}/w.pth", tmp_path / "in" / "w.pth")
    assert (tmp_path / "in" / "w.pth").read_bytes() == content
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["w.pth"]
    assert site.requests == [("/w.pth", None)]
    assert "w.pth: 3 of 3 MB (100 %)" in capsys.readouterr().err


def test_a_cut_connection_is_taken_up_where_it_ended(site, content, tmp_path):
    with Cut(site.port, [1_000_000, 500_000]) as cut:
        download(f"{cut.url}/w.pth", tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == content
    ranges = [span for _, span in site.requests]
    assert len(ranges) == 3
    starts = [int(span.removeprefix("bytes=").rstrip("-")) for span in ranges[1:]]
    assert 900_000 < starts[0] < 1_000_000  # what was sent less the headers
    assert 1_300_000 < starts[1] < 1_500_000


def test_a_killed_process_is_continued_by_the_next(site, content, tmp_path):
    path = tmp_path / "w.pth"
    code = "import sys, pathlib, mae.weights.download as d; d.download(sys.argv[1], pathlib.Path(sys.argv[2]))"
    with Cut(site.port, [2_000_000], hang=True) as cut:
        address = f"{cut.url}/w.pth"
        child = subprocess.Popen([sys.executable, "-c", code, address, str(path)], env={**os.environ})
        assert cut.reached.wait(30)
        part = tmp_path / "w.pth.part"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and (not part.exists() or part.stat().st_size < 1_500_000):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        have = part.stat().st_size
        assert 1_500_000 <= have < SIZE
        download(address, path)
    assert path.read_bytes() == content
    assert site.requests[1] == ("/w.pth", f"bytes={have}-")


@pytest.mark.parametrize(
    ("name", "server", "change", "head"),
    [
        ("the rest of the same file", "ranges", None, 1_000_000),
        ("the file has changed", "ranges", b"another file", 1_000_000),
        ("more is there than the file has", "ranges", None, SIZE + 5),
        ("no ranges", "plain", None, 1_000_000),
    ],
)
def test_a_part_is_continued_or_begun_again_but_never_mixed(site, content, tmp_path, name, server, change, head):
    path = tmp_path / "w.pth"
    file = tmp_path / "site" / "w.pth"
    with served_without_ranges(tmp_path / "site") as plain:
        address = f"{site.url if server == 'ranges' else plain}/w.pth"
        leave_part(address, path, (content + b"extra")[:head])
        site.requests.clear()
        if change is not None:
            file.write_bytes(change)
            os.utime(file, (1, 1))
        download(address, path)
    assert path.read_bytes() == file.read_bytes(), name
    if name == "the rest of the same file":
        assert site.requests == [("/w.pth", "bytes=1000000-")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["site", "w.pth"]


def test_a_part_of_another_address_is_not_continued(site, content, tmp_path):
    leave_part(f"{site.url}/w.pth", tmp_path / "w.pth", b"x" * 1000)
    facts = tmp_path / "w.pth.part.json"
    facts.write_text(facts.read_text().replace(site.url, "http://elsewhere"))
    download(f"{site.url}/w.pth", tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == content


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


def test_a_server_that_always_cuts_is_given_up(site, tmp_path):
    with Cut(site.port, [300] * 50) as cut, pytest.raises((http.client.HTTPException, ConnectionError)):
        download(f"{cut.url}/w.pth", tmp_path / "w.pth")
    assert len(site.requests) <= module.ATTEMPTS + 2


def test_an_encrypted_address_does_not_lead_to_a_plain_one():
    request = module.urllib.request.Request("https://example.org/w.pth")
    with pytest.raises(urllib.error.URLError, match="not encrypted"):
        module._StaySecure().redirect_request(request, None, 302, "Found", {}, "http://example.org/w.pth")
    assert module._StaySecure().redirect_request(request, None, 302, "Found", {}, "https://example.org/other")
