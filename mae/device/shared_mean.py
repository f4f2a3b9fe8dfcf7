"""Means over the ranks of one machine, through memory that they share: the CPU's all-reduce.

MindSpore's own sends through the network stack and takes several times as long. Between NPUs HCCL sums, not this.
"""

from __future__ import annotations

import mmap
import os
import secrets
import socket
import struct
import time
from pathlib import Path

import numpy as np

MEETING = "shared_mean"  # a file of the launch directory: the name of rank 0's socket
LOOK_SECONDS = 0.01
LAUNCHER_SECONDS = 10  # in which a launcher ends all ranks when one has ended


class SharedMean:
    """One rank's part in means of float32 vectors, which all ranks have to call in the same order.

    Each rank averages one stretch for all. Terms are added in the order of ranks, so that every rank gets the same
    bits. What is waited for is a byte from a socket: a waiting rank leaves its core to the threads that read images.

    Args:
        rank: of this process.
        ranks: how many there are, each with `launch_dir` in common and no two with the same number.
        launch_dir: where they find each other.
    """

    def __init__(self, rank: int, ranks: int, launch_dir: Path) -> None:
        self.rank, self.ranks = rank, ranks
        if rank == 0:
            self.file = os.memfd_create("shared_mean")  # gone with the last process that has it
            self.peers = _members(ranks - 1, launch_dir / MEETING, self.file)
        else:
            hub, self.file = _join(launch_dir / MEETING)
            self.peers = [hub]
        self.memory = np.empty(0, np.float32)
        self.waited = 0.0  # seconds, for ranks that came later

    def __call__(self, terms: np.ndarray, number: int = 0) -> np.ndarray:
        """Mean over all ranks of vectors (n,) float32; it stays valid until the next call.

        Args:
            number: below 256, the same on all ranks: ranks that are not at the same mean are an error.

        Raises:
            RuntimeError: another rank has ended, or is at another mean.
        """
        sent, mean = self._memory(terms.size)
        edges = [terms.size * rank // self.ranks for rank in range(self.ranks + 1)]
        spans = [slice(first, last) for first, last in zip(edges, edges[1:])]
        for rank, span in enumerate(spans):
            if rank != self.rank:
                sent[self.rank, span] = terms[span]
        came = time.monotonic()
        self._meet(number)
        self.waited += time.monotonic() - came
        mine = spans[self.rank]
        parts = [(terms if rank == self.rank else sent[rank])[mine] for rank in range(self.ranks)]
        np.add(parts[0], parts[1], out=mean[mine])
        for part in parts[2:]:
            mean[mine] += part
        mean[mine] /= self.ranks  # here, since MindSpore's kernel takes longer than all the rest
        self._meet(number)
        return mean

    def _memory(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(ranks, size) that each rank sends in its own row, (size,) for the mean.

        The mean's place is nobody's row at any size: what it held before may still be read.
        """
        shares = self.ranks + 1
        if size * shares > self.memory.size:
            os.ftruncate(self.file, 4 * size * shares)  # all ranks to the same
            self.memory = np.frombuffer(mmap.mmap(self.file, 4 * size * shares), np.float32)
        mean, sent = self.memory[:size], self.memory[self.memory.size // shares :]
        return sent[: self.ranks * size].reshape(self.ranks, size), mean

    def _meet(self, number: int) -> None:
        """Wait until all ranks have come to this place; what they wrote before is there then."""
        own = bytes([number])
        try:
            if self.rank:
                self.peers[0].send(own)
            found = [peer.recv(1) for peer in self.peers]
            if not self.rank:
                for peer in self.peers:
                    peer.send(own)
        except ConnectionError:
            found = [b""]
        if b"" in found:  # that one has ended; who fails right away would be taken for the first
            time.sleep(LAUNCHER_SECONDS)
        if found != [own] * len(found):
            raise RuntimeError(f"rank {self.rank} is at mean {number}, the others sent {found}")


def _members(count: int, meeting: Path, memory: int) -> list[socket.socket]:
    """Rank 0's connections to the others, to whom it hands the memory."""
    name = f"maeflow-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")  # abstract: leaves no file behind
        listener.listen()
        partial = meeting.with_suffix(".partial")
        partial.write_text(name)
        partial.rename(meeting)
        peers: list[socket.socket] = []
        while len(peers) < count:
            peer, _ = listener.accept()
            if _user(peer) == os.getuid():
                socket.send_fds(peer, [b"0"], [memory])
                peers.append(peer)
        return peers


def _join(meeting: Path) -> tuple[socket.socket, int]:
    """Another rank's connection to rank 0, and the memory."""
    while not meeting.exists():  # if rank 0 never comes, the launcher ends this process
        time.sleep(LOOK_SECONDS)
    hub = socket.socket(socket.AF_UNIX)
    hub.connect(f"\0{meeting.read_text()}")
    if _user(hub) != os.getuid():
        raise PermissionError(f"{meeting}: the socket belongs to another user")
    _, files, _, _ = socket.recv_fds(hub, 1, 1)
    return hub, files[0]


def _user(peer: socket.socket) -> int:
    """Whose process is at the other end (unix(7), SO_PEERCRED: pid, uid, gid)."""
    return struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
