"""Decode files in a process of their own, because they may crash a decoder, hang it, or fill the memory.

Pillow's plugins pass bytes to a dozen C libraries. If one of them crashes or hangs, the caller still gets an answer in
time. What the libraries print is dropped. The process is started for the first file that needs it, and then kept.
"""

from __future__ import annotations

import atexit
import os
import resource
import subprocess
import sys
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from datasets.images.inspect import Inspection, inspect_with_pillow, quick_inspect, sniff

SECONDS = 120.0  # for one file: more than a hundred times what the largest image that is decoded needs
MEMORY = 4 << 30  # bytes of address space; the largest image that is decoded needs 0.7 GB

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
        command: starts the process, with the number of its file descriptor as last argument; default: this module.
    """

    def __init__(self, *, seconds: float = SECONDS, command: list[str] | None = None) -> None:
        self.seconds = seconds
        self.command = command or [sys.executable, "-m", "datasets.images.decoder"]
        self.process: subprocess.Popen[bytes] | None = None

    def inspect(self, data: bytes, *, looks: bool = False) -> Inspection:
        """Return the result of `inspect_with_pillow`; the fault "corrupt" if the process died or took too long."""
        try:
            if self.process is None:
                self._start()
            self.pipe.send((data, looks))
            if self.pipe.poll(self.seconds):
                answer: Inspection = self.pipe.recv()
                return answer
            reason = f"the decoder did not finish in {self.seconds:g} s"
        except (OSError, EOFError):
            reason = "the decoder died"
        self.close()
        return Inspection(("corrupt",), reason, format=sniff(data))

    def close(self) -> None:
        """End the process; the next file starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.pipe.close()
            self.process = None

    def _start(self) -> None:
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [*self.command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.pipe.poll(SECONDS)
        self.pipe.recv()  # ready: the time to start does not count for the first file


def main() -> None:
    """Inspect one file after the other that comes through the pipe, until its other end is closed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with Connection(int(sys.argv[-1])) as pipe:
        pipe.send(None)
        while True:
            try:
                data, looks = pipe.recv()
            except EOFError:
                return
            pipe.send(inspect_with_pillow(data, looks=looks))


if __name__ == "__main__":
    main()
