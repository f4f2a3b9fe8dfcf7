"""The rows of the manifest, made of the parts and of what the whole data set showed; and their totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.base.errors import InputError
from datasets.manifest.faults import outcome
from datasets.manifest.rows import MANIFEST, SCHEMA, fault_counts
from datasets.validation.parts import as_lists, warning_names
from datasets.validation.plan import Plan
from datasets.validation.whole import COPY_FAULTS, Block, Judgement, faults_of_block, rows_of

MOST_EXCLUDED = 1000  # rows that validation.json repeats from the manifest


class Totals:
    """What validation.json says, counted while the manifest is written."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.files = self.bytes = 0
        self.kept: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.excluded: list[dict[str, str]] = []
        self.failed: list[dict[str, str]] = []

    def add(self, table: pa.Table, warnings: list[str]) -> None:
        """Count the rows of a table of the manifest."""
        self.files += len(table)
        self.bytes += pc.sum(table.column("bytes")).as_py() or 0
        statuses, faults, kept = as_lists(table, "status", "faults", "kept")
        self.statuses.update(statuses)
        self.kept[table.column("split")[0].as_py()] += sum(kept)
        for combination, count in Counter(faults).items():
            for fault in filter(None, combination.split(",")):
                self.found[fault] += count
        for text, count in Counter(warnings).items():
            for name in warning_names(text):
                self.warnings[name] += count
        policy = self.plan.options.policy
        for place, keep in enumerate(kept):
            if not keep:
                fails = any(policy[fault] == "fail" for fault in faults[place].split(","))
                for wanted, rows in ((True, self.excluded), (fails, self.failed)):
                    if wanted and len(rows) < MOST_EXCLUDED:
                        row = table.slice(place, 1).to_pylist()[0]
                        rows.append({key: row[key] for key in ("path", "status", "reason")})

    def refuse(self) -> None:
        """Raise InputError where the policy says that a fault which was found ends the validation."""
        if self.failed:
            first = self.failed[0]
            policy = self.plan.options.policy
            counts = {fault: count for fault, count in self.found.items() if policy[fault] == "fail"}
            faults = ", ".join(f"{count:,} {fault}" for fault, count in sorted(counts.items()))
            raise InputError(
                self.plan.root,
                expected="no file with a fault that the policy fails on",
                found=f"{faults}; first {first['path']}: {first['reason'] or first['status']}",
                todo=f"repair or remove them (every row: {self.plan.working / MANIFEST}) and run again",
            )

    def summary(self) -> dict[str, Any]:
        """The totals by name."""
        return {
            "files": self.files,
            "bytes": self.bytes,
            "train": self.kept["train"],
            "val": self.kept["val"],
            "faults": fault_counts(self.statuses.elements()),
            "found": dict(sorted(self.found.items())),
            "warnings": dict(sorted(self.warnings.items())),
            "excluded": self.excluded,
        }


def manifest_tables(plan: Plan, judgement: Judgement, totals: Totals) -> Iterator[pa.Table]:
    """The manifest, block by block."""
    originals = _originals(plan, judgement)
    labels = {name: label for label, name in enumerate(judgement.classes)}
    for block in judgement.blocks:
        if not block.rows:
            continue
        table = rows_of(plan, block.part, block.split)
        found, reasons, warnings = as_lists(table, "faults", "reason", "warnings")
        faults = faults_of_block(judgement, block, found, plan.options)
        _explain_copies(judgement, block, originals, reasons)
        outcomes = {text: outcome(filter(None, text.split(",")), plan.options.policy) for text in set(faults)}
        label = labels.get(block.part.folder.class_name, -1)
        columns = {
            "label": pa.array([label] * block.rows, pa.int32()),
            "digest": _hex(table, "digest"),
            "checksum": _hex(table, "checksum"),
            "status": pa.array([outcomes[text].status for text in faults], pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "faults": pa.array(faults, pa.string()),
            "kept": pa.array([outcomes[text].kept for text in faults], pa.bool_()),
        }
        arrays = [columns[name] if name in columns else table.column(name) for name in SCHEMA.names]
        rows = pa.Table.from_arrays(arrays, schema=SCHEMA)
        totals.add(rows, warnings)
        yield rows


def _originals(plan: Plan, judgement: Judgement) -> dict[int, tuple[str, str]]:
    """Path and class of every row that others are copies of, by row number."""
    numbers = np.unique(np.concatenate([rows[rows >= 0] for rows in judgement.copies]))
    found = {}
    for block in judgement.blocks:
        inside = numbers[np.searchsorted(numbers, block.start) : np.searchsorted(numbers, block.start + block.rows)]
        if len(inside):
            (paths,) = as_lists(rows_of(plan, block.part, block.split, ["path"]), "path")
            found.update({int(n): (paths[n - block.start], block.part.folder.class_name) for n in inside})
    return found


def _explain_copies(
    judgement: Judgement, block: Block, originals: dict[int, tuple[str, str]], reasons: list[str]
) -> None:
    for fault, rows in zip(COPY_FAULTS, judgement.copies):
        part = rows[block.start : block.start + block.rows]
        for place in np.flatnonzero(part >= 0):
            path, class_name = originals[int(part[place])]
            what = "looks like" if fault == "near_duplicate" else "same bytes as"
            other = "" if class_name == block.part.folder.class_name else ", which is of another class"
            reasons[place] = "; ".join(filter(None, (f"{what} {path}{other}", reasons[place])))


def _hex(table: pa.Table, column: str) -> pa.Array:
    return pa.array([None if value is None else value.hex() for value in table.column(column).to_pylist()], pa.string())
