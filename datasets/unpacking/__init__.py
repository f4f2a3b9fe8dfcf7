"""Unpacking tar archives of images into root/train/<class>/ and root/val/<class>/. Read `unpack.py` first."""

from datasets.unpacking.unpack import MARKER, Unpacked, unpack_archives

__all__ = ["MARKER", "Unpacked", "unpack_archives"]
