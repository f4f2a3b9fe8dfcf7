"""Averages vectors over the ranks of one machine through shared memory: the all-reduce of a job on CPUs.

MindSpore's own all-reduce goes through the network stack and takes several times as long. NPUs use HCCL instead.
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

MEETING = "shared_mean"  # a file in the launch directory that contains the name of rank 0's socket
LOOK_SECONDS = 0.01
LAUNCHER_SECONDS = 10  # within this time the launcher ends all ranks after one has ended


class SharedMean:
    """Averages float32 vectors over all ranks. All ranks must call it in the same order.

    Each rank averages one section of the vector for all ranks. Terms are added in the order of ranks, so every rank
    gets the same bits. A rank waits for a byte from a socket, so meanwhile its core is free for the threads that read
    images.

    Args:
        rank: number of this process.
        ranks: number of processes.
        launch_dir: a folder that all ranks share and in which they find each other.
    """

    def __init__(self, rank: int, ranks: int, launch_dir: Path) -> None:
        self.rank, self.ranks = rank, ranks
        if rank == 0:
            self.file = os.memfd_create("shared_mean")  # freed when the last process that holds it ends
            self.peers = _members(ranks - 1, launch_dir / MEETING, self.file)
        else:
            hub, self.file = _join(launch_dir / MEETING)
            self.peers = [hub]
        self.memory = np.empty(0, np.float32)
        self.waited = 0.0  # seconds of waiting for other ranks

    def __call__(self, terms: np.ndarray, number: int = 0) -> np.ndarray:
        """Return the mean over all ranks of vectors (n,) float32. It is valid until the next call.

        Args:
            number: identifies this mean, from 0 to 255. Ranks that call with different numbers are an error.

        Raises:
            RuntimeError: another rank has ended, or has called with another number.
        """
        sent, mean = self._memory(terms.size)
        edges = [terms.size * rank // self.ranks for rank in range(self.ranks + 1)]
        spans = [slice(first, last) for first, last in zip(edges, edges[1:])]
        for rank, span in enumerate(spans):
            if rank != self.rank:
                sent[self.rank, span] = terms[span]
        arrived = time.monotonic()
        self._meet(number)
        self.waited += time.monotonic() - arrived
        mine = spans[self.rank]
        parts = [(terms if rank == self.rank else sent[rank])[mine] for rank in range(self.ranks)]
        np.add(parts[0], parts[1], out=mean[mine])
        for part in parts[2:]:
            mean[mine] += part
        mean[mine] /= self.ranks  # here, because MindSpore's kernel takes longer than all the rest
        self._meet(number)
        return mean

    def _memory(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return two views of the shared memory: terms (ranks, size), one row per rank, and the mean (size,).

        The mean never overlaps a row, whatever the size: another rank may still read the previous mean.
        """
        shares = self.ranks + 1
        if size * shares > self.memory.size:
            os.ftruncate(self.file, 4 * size * shares)  # all ranks set the same size
            self.memory = np.frombuffer(mmap.mmap(self.file, 4 * size * shares), np.float32)
        mean, sent = self.memory[:size], self.memory[self.memory.size // shares :]
        return sent[: self.ranks * size].reshape(self.ranks, size), mean

    def _meet(self, number: int) -> None:
        """Wait until all ranks have called this. Then everything that they wrote before is visible."""
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
        if b"" in found:  # another rank has ended; wait, or the launcher might take this rank for the first to fail
            time.sleep(LAUNCHER_SECONDS)
        if found != [own] * len(found):
            raise RuntimeError(f"rank {self.rank} is at mean {number}, the others sent {found}")


def _members(count: int, meeting: Path, memory: int) -> list[socket.socket]:
    """Accept rank 0's connections to the other ranks, and send each the shared memory."""
    name = f"maeflow-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")  # an abstract name, so there is no file to remove
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
    """Connect another rank to rank 0. Return the connection and the file of the shared memory."""
    while not meeting.exists():  # if rank 0 does not start, the launcher ends this process
        time.sleep(LOOK_SECONDS)
    hub = socket.socket(socket.AF_UNIX)
    hub.connect(f"\0{meeting.read_text()}")
    if _user(hub) != os.getuid():
        raise PermissionError(f"{meeting}: the socket belongs to another user")
    _, files, _, _ = socket.recv_fds(hub, 1, 1)
    return hub, files[0]


def _user(peer: socket.socket) -> int:
    """Return the user id of the process at the other end (unix(7), SO_PEERCRED: pid, uid, gid)."""
    return struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
