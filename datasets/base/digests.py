"""Digests of files and of JSON values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Union

import xxhash

_BLOCK = 1 << 20  # bytes read at once


def file_digest(path: Union[str, Path]) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    return _of_file(path, hashlib.sha256())


def file_md5(path: Union[str, Path]) -> str:
    """Return the MD5 of a file's bytes, in hex; publishers of data sets and weights state it."""
    return _of_file(path, hashlib.md5(usedforsecurity=False))


def checksum(data: bytes) -> bytes:
    """Return the XXH3-128 of bytes, 16 bytes.

    It finds any accidental damage at the speed of memory, where SHA-256 would cost as much as all other work. It does
    not protect against forgery.
    """
    return xxhash.xxh3_128_digest(data)


def file_checksum(path: Union[str, Path]) -> str:
    """Return the XXH3-128 of a file's bytes as "xxh3:" and hex; `xxhsum -H2` prints the same hex."""
    return f"xxh3:{_of_file(path, xxhash.xxh3_128())}"


def value_digest(value: Any) -> str:
    """Return the first 12 hex digits of the SHA-256 of a JSON value with sorted keys, which name a directory."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _of_file(path: Union[str, Path], digest: Any) -> str:
    with open(path, "rb", buffering=0) as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return str(digest.hexdigest())
