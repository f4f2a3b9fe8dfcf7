"""Decode files in a process of their own, because they may crash a decoder, hang it, or fill the memory.

Pillow's plugins pass bytes to a dozen C libraries. If one of them crashes or hangs, the caller still gets an answer in
time. What the libraries print is dropped. The process is started for the first file that needs it, and then kept.
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

SECONDS = 120.0  # for one file: more than a hundred times what the largest image that is decoded needs
MEMORY = 4 << 30  # bytes of address space; the largest image that is decoded needs 0.7 GB

_HEAD = struct.Struct("<Q?")  # number of bytes that follow; whether the perceptual hash is wanted
_local = threading.local()


def inspect_apart(data: bytes, *, looks: bool = False) -> Inspection:
    """Like `inspect`, but files that need Pillow are decoded in another process; each thread has its own."""
    found = quick_inspect(data, looks=looks)
    if found is not None:
        return found
    if not hasattr(_local, "decoder"):
        _local.decoder = Decoder()
        atexit.register(_local.decoder.close)
    return _local.decoder.inspect(data, looks=looks)


class Decoder:
    """Runs `inspect_with_pillow` in a process of its own.

    Args:
        seconds: limit for one file.
        command: starts the process; default: this module.
    """

    def __init__(self, *, seconds: float = SECONDS, command: list[str] | None = None) -> None:
        self.seconds = seconds
        self.command = command or [sys.executable, "-m", "datasets.images.decoder"]
        self.process: subprocess.Popen[bytes] | None = None

    def inspect(self, data: bytes, *, looks: bool = False) -> Inspection:
        """Return the result of `inspect_with_pillow`; the fault "corrupt" if the process died or took too long."""
        try:
            answer = self._ask(data, looks)
        except TimeoutError:
            reason = f"the decoder did not finish in {self.seconds:g} s"
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
            self._read(1, SECONDS)
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(_HEAD.pack(len(data), looks))
        stdin.write(data)
        stdin.flush()
        (size,) = struct.unpack("<Q", self._read(8, self.seconds))
        answer: Inspection = pickle.loads(self._read(size, self.seconds))
        return answer

    def _read(self, size: int, seconds: float) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        descriptor, parts = self.process.stdout.fileno(), b""
        while len(parts) < size:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(seconds * 1000):
                raise TimeoutError
            part = os.read(descriptor, size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return parts


def serve(source: IO[bytes], answers: IO[bytes]) -> None:
    """Inspect one file after the other until `source` ends."""
    answers.write(b"\0")  # ready: the time to start does not count for the first file
    answers.flush()
    while head := source.read(_HEAD.size):
        size, looks = _HEAD.unpack(head)
        answer = pickle.dumps(inspect_with_pillow(source.read(size), looks=looks))
        answers.write(struct.pack("<Q", len(answer)) + answer)
        answers.flush()


def main() -> None:
    """Serve on stdin and stdout. Libraries that print to stdout write to stderr instead."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = io.FileIO(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, io.BufferedWriter(answers))


if __name__ == "__main__":
    main()
