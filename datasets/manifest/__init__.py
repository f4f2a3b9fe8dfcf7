"""The manifest: one row per file (rows.py), and the faults that rows name and what becomes of each (faults.py).

Read faults.py first. What needs pyarrow is imported at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datasets.manifest.faults import FAULTS, parse_policy

if TYPE_CHECKING:
    from datasets.manifest.rows import MANIFEST, ManifestRow, fault_counts, iterate_manifest

__all__ = ["FAULTS", "MANIFEST", "ManifestRow", "fault_counts", "iterate_manifest", "parse_policy"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("datasets.manifest.rows"), name)
