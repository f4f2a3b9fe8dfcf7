"""Downloads one file over HTTP(S), and resumes a download that was interrupted.

<file>.part       the bytes that have arrived
<file>.part.json  the address and the version (ETag or Last-Modified) of the file that they belong to
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

SECONDS = 30.0  # longest wait for a byte from the server
ATTEMPTS = 5  # attempts in a row without a new byte; only one if no byte has arrived in this call
PAUSE = 1.0  # seconds before the next attempt, doubled after each without a new byte
PROGRESS_SECONDS = 10.0  # between two lines of progress
BLOCK = 1 << 18
NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)


def download(address: str, path: Path) -> None:
    """Download `address` to `path`, which exists only when it is complete.

    If the connection ends early, the rest is requested at once; if the process ends, the next call requests it. The
    rest is used only if the server's file has not changed (If-Range). The download starts over if it has changed or if
    the server does not support ranges. A redirect from https to http is refused.

    Raises:
        one of NETWORK_ERRORS: the server did not answer completely. The bytes so far are kept for the next call.
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
    known, have = _known_version(facts, address), _size(part)
    request = urllib.request.Request(address, headers={"Accept-Encoding": "identity", "User-Agent": "maeflow"})
    if have and known:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known)
    try:
        answer = urllib.request.build_opener(_StaySecure).open(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not request.has_header("Range"):
            raise
        part.unlink()  # the server's file is shorter than the part
        _fetch_rest(address, part, facts)
        return
    with answer:
        start, total = _extent(answer)
        if start not in (0, have):
            raise http.client.HTTPException(f"asked for bytes {have}-, got {answer.headers['Content-Range']}")
        progress = _Progress(Path(urlsplit(address).path).name, start, total)
        with part.open("ab" if start else "wb") as file:
            if not start:  # the part is empty now, so the facts cannot describe bytes of another version
                write_json(facts, {"address": address, "version": _version(answer.headers)})
            while block := answer.read1(BLOCK):
                file.write(block)
                progress.add(len(block))
            os.fsync(file.fileno())
        progress.show()
    if total is not None and _size(part) != total:
        if _size(part) > total:
            part.unlink()
        raise http.client.HTTPException(f"the connection ended after {_size(part)} of {total} bytes")


def _extent(answer: Any) -> tuple[int, int | None]:
    """Return the first byte of the answer's body and the length of the whole file."""
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        span, _, total = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")
        return int(span.split("-")[0]), int(total) if total != "*" else None
    length = answer.headers["Content-Length"]
    return 0, int(length) if length is not None else None


def _version(headers: Message) -> str | None:
    """Return the ETag, or the date of the last change. A weak ETag does not guarantee the same bytes."""
    etag: str | None = headers["ETag"]
    return etag if etag is not None and not etag.startswith("W/") else headers["Last-Modified"]


def _known_version(facts: Path, address: str) -> str | None:
    """Return the version that the part belongs to; none if it is unknown or the part is of another address."""
    try:
        found = json.loads(facts.read_text())
        return found["version"] if found["address"] == address else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


class _StaySecure(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
            raise urllib.error.URLError(f"{req.full_url} redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


class _Progress:
    """Prints the progress to stderr every PROGRESS_SECONDS and at the end."""

    def __init__(self, name: str, start: int, total: int | None) -> None:
        self.name, self.start, self.done, self.total = name, start, start, total
        self.began = self.shown = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        if time.monotonic() - self.shown > PROGRESS_SECONDS:
            self.show()

    def show(self) -> None:
        self.shown = time.monotonic()
        rate = (self.done - self.start) / 1e6 / max(self.shown - self.began, 1e-3)
        share = f" of {self.total / 1e6:.0f} MB ({100 * self.done / self.total:.0f} %)" if self.total else " MB"
        print(f"{self.name}: {self.done / 1e6:.0f}{share}, {rate:.1f} MB/s", file=sys.stderr, flush=True)
