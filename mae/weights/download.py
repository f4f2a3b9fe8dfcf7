"""Downloads one file over HTTP(S)."""

from __future__ import annotations

import http.client
import sys
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO

SECONDS = 30.0  # longest wait for a byte from the server
PROGRESS_SECONDS = 10.0  # between two lines of progress
BLOCK = 1 << 20
NETWORK_ERRORS = (OSError, http.client.HTTPException)  # URLError, time-outs and TLS's errors are OSErrors


def download(address: str, path: Path) -> None:
    """Download `address` to `path`, which exists only when it is complete. Progress goes to stderr.

    Raises:
        one of NETWORK_ERRORS: the server did not answer completely, or redirects from https to http.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    request = urllib.request.Request(address, headers={"User-Agent": "maeflow"})
    with urllib.request.build_opener(_StaySecure).open(request, timeout=SECONDS) as answer, partial.open("wb") as file:
        total, shown = int(answer.headers["Content-Length"] or 0), time.monotonic()
        while block := answer.read(BLOCK):
            file.write(block)
            if time.monotonic() - shown > PROGRESS_SECONDS or file.tell() == total:
                shown = time.monotonic()
                of = f" of {total / 1e6:.0f}" if total else ""
                print(f"{path.name}: {file.tell() / 1e6:.0f}{of} MB", file=sys.stderr, flush=True)
        if file.tell() < total:
            raise http.client.HTTPException(f"the connection ended after {file.tell()} of {total} bytes")
    partial.replace(path)


class _StaySecure(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
            raise urllib.error.URLError(f"{req.full_url} redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
