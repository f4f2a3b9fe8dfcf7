"""The rows of the manifest, and their totals, from what the whole data set showed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.base.errors import InputError
from datasets.manifest.faults import FAULTS, Policy
from datasets.manifest.rows import ROW_GROUP, SCHEMA
from datasets.validation.whole import (
    COPY_FAULTS,
    Judgement,
    bits,
    encoded,
    fault_names,
    is_val,
    outcome_of,
    per_combination,
)

MOST_EXCLUDED = 1000  # rows of the manifest that validation.json repeats


def manifest_tables(judgement: Judgement, policy: Policy) -> Iterator[pa.Table]:
    """Yield the manifest in tables of ROW_GROUP rows."""
    labels = {name: label for label, name in enumerate(judgement.classes)}
    for start in range(0, len(judgement.rows), ROW_GROUP):
        rows = judgement.rows.slice(start, ROW_GROUP)
        faults = judgement.faults[start : start + ROW_GROUP]
        names, of_class = encoded(rows["class_name"])
        reasons = rows["reason"].to_pylist()
        for place in np.flatnonzero(faults & bits(COPY_FAULTS)):
            reasons[place] = _reason(judgement, start + int(place))
        columns = {
            "label": np.array([labels.get(name, -1) for name in names], np.int32)[of_class],
            "digest": _hex(rows["digest"]),
            "checksum": _hex(rows["checksum"]),
            "status": per_combination(faults, lambda value: outcome_of(value, policy).status, object),
            "reason": reasons,
            "faults": per_combination(faults, lambda value: ",".join(fault_names(value)), object),
            "kept": judgement.kept[start : start + ROW_GROUP],
        }
        arrays = [pa.array(columns[f.name], f.type) if f.name in columns else rows[f.name] for f in SCHEMA]
        yield pa.Table.from_arrays(arrays, schema=SCHEMA)


def refuse(judgement: Judgement, root: Path, policy: Policy, manifest: Path) -> None:
    """Raise InputError if a file has a fault on which the policy fails."""
    failed = np.flatnonzero(judgement.failed & ~judgement.kept)
    if not len(failed):
        return
    counts = {fault: count for fault, count in _found(judgement).items() if policy[fault] == "fail"}
    first = _example(judgement, policy, int(failed[0]))
    raise InputError(
        root,
        expected="no file with a fault that the policy fails on",
        found=", ".join(f"{count:,} {fault}" for fault, count in counts.items())
        + f"; first {first['path']}: {first['reason'] or first['status']}",
        todo=f"repair or remove them (every row: {manifest}) and run again",
    )


def totals(judgement: Judgement, policy: Policy) -> dict[str, Any]:
    """Return the totals of validation.json by name."""
    rows, of_val = judgement.rows, is_val(judgement.rows)
    statuses: Counter[str] = Counter()
    for faults, count in _combinations(judgement):
        statuses[outcome_of(faults, policy).status] += count
    warnings: Counter[str] = Counter()
    for text, count in (value.values() for value in pc.value_counts(rows["warnings"]).to_pylist()):
        warnings.update(dict.fromkeys(filter(None, text.split("; ")), count))
    excluded = np.flatnonzero(~judgement.kept)[:MOST_EXCLUDED]
    return {
        "files": len(rows),
        "bytes": pc.sum(rows["bytes"]).as_py() or 0,
        "train": int((judgement.kept & ~of_val).sum()),
        "val": int((judgement.kept & of_val).sum()),
        "faults": {status: count for status, count in sorted(statuses.items()) if status != "ok"},
        "found": _found(judgement),
        "warnings": dict(sorted(warnings.items())),
        "excluded": [_example(judgement, policy, int(row)) for row in excluded],
    }


def _combinations(judgement: Judgement) -> list[tuple[np.uint64, int]]:
    values, counts = np.unique(judgement.faults, return_counts=True)
    return list(zip(values, counts.tolist()))


def _found(judgement: Judgement) -> dict[str, int]:
    """Return the number of rows with each fault that was found, by name."""
    counts = {
        name: sum(n for faults, n in _combinations(judgement) if faults & bits([name])) for name in sorted(FAULTS)
    }
    return {name: count for name, count in counts.items() if count}


def _example(judgement: Judgement, policy: Policy, row: int) -> dict[str, str]:
    status = outcome_of(judgement.faults[row], policy).status
    return {"path": judgement.rows["path"][row].as_py(), "status": status, "reason": _reason(judgement, row)}


def _reason(judgement: Judgement, row: int) -> str:
    reason, rows = judgement.rows["reason"][row].as_py(), judgement.rows
    for fault, originals in zip(COPY_FAULTS, judgement.copies):
        if originals[row] >= 0:
            original = int(originals[row])
            what = "looks like" if fault == "near_duplicate" else "same bytes as"
            other = "" if rows["class_name"][original] == rows["class_name"][row] else ", which is of another class"
            reason = "; ".join(filter(None, (f"{what} {rows['path'][original]}{other}", reason)))
    return reason


def _hex(column: pa.ChunkedArray) -> list[Optional[str]]:
    return [None if value is None else value.hex() for value in column.to_pylist()]
