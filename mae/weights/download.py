"""One file over HTTP(S): with progress, continued where an earlier attempt was cut off.

<file>.part       what has arrived
<file>.part.json  of which address and which version (ETag, Last-Modified) it is the beginning
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from datasets.base.files import write_json

SECONDS = 30.0  # without a byte from the server
ATTEMPTS = 5  # in a row that bring nothing; the first of a call is the last where nobody answers
PAUSE = 1.0
BLOCK = 1 << 18
NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


def download(address: str, path: Path) -> None:
    """Fetch `address` into `path`, which appears when it is complete.

    A cut connection is taken up again at once, an interrupted call by the next one: only the rest is asked for, and
    only if the file is still the same (If-Range). A server that knows no ranges, or has another file by now, is read
    from the start. An address that begins with https is never left for one that does not.

    Raises:
        one of NETWORK_ERRORS: there was no (complete) answer. What has arrived is kept for the next call.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, facts = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    arrived, failures = False, 0
    while True:
        before = _size(part)
        try:
            _fetch_rest(address, part, facts)
            break
        except NETWORK_ERRORS:
            failures = 0 if _size(part) > before else failures + 1
            arrived = arrived or failures == 0
            if not arrived or failures == ATTEMPTS:
                raise
            time.sleep(PAUSE * 2 ** min(failures, 4))
    part.replace(path)
    facts.unlink()


def _fetch_rest(address: str, part: Path, facts: Path) -> None:
    known, have = _read_facts(facts), _size(part)
    request = urllib.request.Request(address, headers={"Accept-Encoding": "identity", "User-Agent": "maeflow"})
    validator = known.get("etag") or known.get("last_modified")
    if have and validator and known.get("address") == address:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    opener = urllib.request.build_opener(_StaySecure)
    try:
        answer = opener.open(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not request.has_header("Range"):
            raise
        part.unlink()  # it is no beginning of what the server has
        _fetch_rest(address, part, facts)
        return
    with answer:
        start, total = _extent(answer)
        if start not in (0, have):
            raise http.client.HTTPException(f"asked for bytes {have}-, got {answer.headers['Content-Range']}")
        with part.open("ab" if start else "wb") as file:
            if not start:  # the file is empty by now, so the facts never speak of another version's bytes
                write_json(facts, {"address": address, **_version(answer.headers)})
            _copy(answer, file, _Progress(Path(urlsplit(address).path).name, start, total))
            os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        if _size(part) > total:
            part.unlink()
        raise http.client.HTTPException(f"the connection ended after {_size(part)} of {total} bytes")


def _extent(answer: Any) -> tuple[int, int | None]:
    """At which byte the answer's body starts and how long the whole file is."""
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        span, _, total = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")
        return int(span.split("-")[0]), int(total) if total != "*" else None
    length = answer.headers["Content-Length"]
    return 0, int(length) if length is not None else None


def _version(headers: Message) -> dict[str, str | None]:
    """What names this version of the file; a weak ETag does not promise the same bytes."""
    etag = headers["ETag"]
    strong = etag if etag is not None and not etag.startswith("W/") else None
    return {"etag": strong, "last_modified": headers["Last-Modified"]}


def _copy(answer: Any, file: IO[bytes], progress: _Progress) -> None:
    while block := answer.read1(BLOCK):
        file.write(block)
        progress.add(len(block))
    progress.end()


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _read_facts(facts: Path) -> dict[str, Any]:
    try:
        found = json.loads(facts.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class _StaySecure(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
            raise urllib.error.URLError(f"{req.full_url} redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


class _Progress:
    """A line on stderr: renewed in place on a terminal, a new one every ten seconds in a log."""

    def __init__(self, name: str, start: int, total: int | None) -> None:
        self.name, self.done, self.total = name, start, total
        self.began, self.start = time.monotonic(), start
        self.terminal = sys.stderr.isatty()
        self.shown = self.began if not self.terminal else 0.0

    def add(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self.shown > (0.2 if self.terminal else 10.0):
            self.shown = time.monotonic()
            self._show("")

    def end(self) -> None:
        self._show("\n" if self.terminal else "")

    def _show(self, end: str) -> None:
        rate = (self.done - self.start) / 1e6 / max(time.monotonic() - self.began, 1e-3)
        share = f" of {self.total / 1e6:.0f} MB ({100 * self.done / self.total:.0f} %)" if self.total else " MB"
        line = f"{self.name}: {self.done / 1e6:.0f}{share}, {rate:.1f} MB/s"
        print(f"\r{line}" if self.terminal else line, end=end if self.terminal else "\n", file=sys.stderr, flush=True)
