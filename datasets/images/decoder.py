"""A process that decodes what may crash a decoder, keep it for ever, or fill the memory.

Pillow's plugins hand bytes to a dozen C libraries. Whatever becomes of them, the caller gets an answer in time, and
what they print goes nowhere. The process is started at the first file that needs it and kept for the next.
"""

from __future__ import annotations

import atexit
import io
import os
import pickle
import resource
import select
import struct
import subprocess
import sys
import threading
from typing import IO

from datasets.images.inspect import Inspection, inspect_with_pillow, quick_inspect, sniff

SECONDS = 120.0  # for one file: more than a hundred times what the largest that is decoded needs
MEMORY = 4 << 30  # bytes of address space; the largest image that is decoded needs 0.7 GB

_HEAD = struct.Struct("<Q?")  # bytes that follow, whether the perceptual hash is wanted
_local = threading.local()


def inspect_apart(data: bytes, *, looks: bool = False) -> Inspection:
    """`inspect`, but what is no ordinary JPEG is decoded in another process, one for each thread."""
    found = quick_inspect(data, looks=looks)
    if found is not None:
        return found
    if not hasattr(_local, "decoder"):
        _local.decoder = Decoder()
        atexit.register(_local.decoder.close)
    return _local.decoder.inspect(data, looks=looks)


class Decoder:
    """`inspect` in a process of its own.

    Args:
        seconds: after which a file is given up.
        command: that starts the process; default: this module.
    """

    def __init__(self, *, seconds: float = SECONDS, command: list[str] | None = None) -> None:
        self.seconds = seconds
        self.command = command or [sys.executable, "-m", "datasets.images.decoder"]
        self.process: subprocess.Popen[bytes] | None = None

    def inspect(self, data: bytes, *, looks: bool = False) -> Inspection:
        """What `inspect_with_pillow` says; `corrupt` where the decoder died or did not come to an end."""
        try:
            answer = self._ask(data, looks)
        except TimeoutError:
            reason = f"the decoder did not come to an end in {self.seconds:g} s"
        except (OSError, EOFError):
            reason = "the decoder died"
        else:
            return answer
        self.close()
        return Inspection(("corrupt",), reason, format=sniff(data))

    def close(self) -> None:
        """End the process; the next file starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _ask(self, data: bytes, looks: bool) -> Inspection:
        if self.process is None:
            pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
            path = os.pathsep.join(filter(None, sys.path))
            self.process = subprocess.Popen(
                self.command, stdin=pipe, stdout=pipe, stderr=nowhere, env={**os.environ, "PYTHONPATH": path}
            )
            self._read(1)
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(_HEAD.pack(len(data), looks))
        stdin.write(data)
        stdin.flush()
        (size,) = struct.unpack("<Q", self._read(8))
        answer: Inspection = pickle.loads(self._read(size))
        return answer

    def _read(self, size: int) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        descriptor, parts = self.process.stdout.fileno(), b""
        while len(parts) < size:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(self.seconds * 1000):
                raise TimeoutError
            part = os.read(descriptor, size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return parts


def serve(source: IO[bytes], answers: IO[bytes]) -> None:
    """Inspect what comes in until no more does."""
    answers.write(b"\0")  # ready: what it takes to start is not counted against the first file
    answers.flush()
    while head := source.read(_HEAD.size):
        size, looks = _HEAD.unpack(head)
        answer = pickle.dumps(inspect_with_pillow(source.read(size), looks=looks))
        answers.write(struct.pack("<Q", len(answer)) + answer)
        answers.flush()


def main() -> None:
    """Serve on stdin and stdout, which no library may write to."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = io.FileIO(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, io.BufferedWriter(answers))


if __name__ == "__main__":
    main()
