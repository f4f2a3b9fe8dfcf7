"""Digests of files and values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Union

import xxhash


def file_digest(path: Union[str, Path]) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def checksum(data: bytes) -> bytes:
    """XXH3-128 of bytes: finds any damage at the speed of memory, where SHA-256 costs as much as all else; no proof
    against a forger."""
    return xxhash.xxh3_128_digest(data)


def file_checksum(path: Union[str, Path]) -> str:
    """XXH3-128 of a file's bytes, as "xxh3:" and hex (`xxhsum -H2` prints the same)."""
    found = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return f"xxh3:{found.hexdigest()}"


def value_digest(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of a JSON value with sorted keys: names a directory by its inputs."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
