"""What only the whole data set shows: copies, classes without images, other counts than expected; and what is kept.

All rows are in memory at once: about 300 MB for ImageNet. The faults of a row are the bits of an integer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datasets.base.errors import InputError
from datasets.imagenet import EXPECTED
from datasets.layout import NO_CLASS
from datasets.manifest.faults import FAULTS, fault_names, outcome
from datasets.manifest.rows import ROW_GROUP, SCHEMA
from datasets.validation.copies import Copies, find_copies
from datasets.validation.options import ValidationOptions

FEW_IMAGES = 10
MOST_EXCLUDED = 1000  # rows of the manifest that validation.json repeats
COPY_FAULTS = ("leak", "duplicate", "near_duplicate")  # in the order of Copies

_BITS = {name: np.uint64(1 << place) for place, name in enumerate(FAULTS)}


class Whole:
    """The N files of a data set, in the order of the manifest, and what becomes of each.

    Args:
        root: of the data set.
        rows: the table of all units, one after the other.
        options: of the validation.

    Raises:
        InputError: classes or counts are not as the policy demands, or there is no usable validation image.
    """

    def __init__(self, root: Path, rows: pa.Table, options: ValidationOptions) -> None:
        self.root, self.rows, self.options, self.policy = root, rows, options, options.policy
        self._is_val = pc.equal(rows["split"], "val").to_numpy()
        self._names, self._class = _encoded(rows["class_name"])  # (N,) place of the class in the names
        self._side = np.minimum(*(rows[name].fill_null(-1).to_numpy() for name in ("width", "height")))
        texts, which = _encoded(rows["faults"])
        self.faults = np.array([_bits(fault_names(text)) for text in texts], np.uint64)[which]  # (N,)
        self.faults[(self._side >= 0) & (self._side < options.min_side)] |= _BITS["small"]
        self.copies = self._find_copies()
        for fault, originals in zip(COPY_FAULTS, self.copies):
            self.faults[originals >= 0] |= _BITS[fault]
        self._failed = (self.faults & _bits(name for name in FAULTS if self.policy[name] == "fail")) > 0  # (N,)
        of_class = self._class_faults()
        self.faults |= np.array([_bits(of_class.get(name, [])) for name in self._names], np.uint64)[self._class]
        self.kept = self._kept()  # (N,)
        if not self.kept[self._is_val].any():
            todo = "add images to val/, or use classes of at least two images"
            raise InputError(root, expected="a usable validation image", found="none", todo=todo)
        has_train = self._counts(~self._is_val)
        self.classes = sorted(
            name for name, faults in of_class.items() if has_train[name] and not self._is_left_out(faults)
        )

    def manifest(self) -> Iterator[pa.Table]:
        """Yield the manifest in tables of ROW_GROUP rows."""
        labels = {name: label for label, name in enumerate(self.classes)}
        label_of = np.array([labels.get(name, -1) for name in self._names], np.int32)
        for start in range(0, len(self.rows), ROW_GROUP):
            here = slice(start, start + ROW_GROUP)
            rows, faults = self.rows.slice(start, ROW_GROUP), self.faults[here]
            reasons = rows["reason"].to_pylist()
            for place in np.flatnonzero(faults & _bits(COPY_FAULTS)).tolist():
                reasons[place] = self._reason(start + place)
            columns = {
                "label": label_of[self._class[here]],
                "digest": _hex(rows["digest"]),
                "checksum": _hex(rows["checksum"]),
                "status": _each(faults, self._status, object),
                "reason": reasons,
                "faults": _each(faults, lambda value: ",".join(_fault_names(value)), object),
                "kept": self.kept[here],
            }
            arrays = [pa.array(columns[f.name], f.type) if f.name in columns else rows[f.name] for f in SCHEMA]
            yield pa.Table.from_arrays(arrays, schema=SCHEMA)

    def refuse(self, manifest: Path) -> None:
        """Raise InputError if a file has a fault on which the policy fails."""
        failed = np.flatnonzero(self._failed)
        if not len(failed):
            return
        counts = [f"{count:,} {fault}" for fault, count in self._found().items() if self.policy[fault] == "fail"]
        first = self._example(failed[0])
        raise InputError(
            self.root,
            expected="no file with a fault that the policy fails on",
            found=f"{', '.join(counts)}; first {first['path']}: {first['reason'] or first['status']}",
            todo=f"repair or remove them (every row: {manifest}) and run again",
        )

    def totals(self) -> dict[str, Any]:
        """Return the totals of validation.json by name."""
        statuses, warnings = Counter[str](), Counter[str]()
        for faults, count in self._combinations():
            statuses[self._status(faults)] += count
        for text, count in (value.values() for value in pc.value_counts(self.rows["warnings"]).to_pylist()):
            warnings.update(dict.fromkeys(filter(None, text.split("; ")), count))
        return {
            "files": len(self.rows),
            "bytes": pc.sum(self.rows["bytes"]).as_py() or 0,
            "train": int((self.kept & ~self._is_val).sum()),
            "val": int((self.kept & self._is_val).sum()),
            "faults": {status: count for status, count in sorted(statuses.items()) if status != "ok"},
            "found": self._found(),
            "warnings": dict(sorted(warnings.items())),
            "excluded": [self._example(row) for row in np.flatnonzero(~self.kept)[:MOST_EXCLUDED]],
        }

    def _status(self, faults: np.uint64) -> str:
        return outcome(_fault_names(faults), self.policy).status

    def _kept(self) -> npt.NDArray[np.bool_]:
        return _each(self.faults, lambda faults: outcome(_fault_names(faults), self.policy).kept, bool)

    def _combinations(self) -> list[tuple[np.uint64, int]]:
        values, counts = np.unique(self.faults, return_counts=True)
        return list(zip(values, counts.tolist()))

    def _found(self) -> dict[str, int]:
        """Return the number of rows with each fault that was found, by name."""
        found: Counter[str] = Counter()
        for faults, count in self._combinations():
            found.update(dict.fromkeys(_fault_names(faults), count))
        return dict(sorted(found.items()))

    def _example(self, row: int) -> dict[str, str]:
        status, path = self._status(self.faults[row]), self.rows["path"][int(row)].as_py()
        return {"path": path, "status": status, "reason": self._reason(int(row))}

    def _reason(self, row: int) -> str:
        reason, rows = self.rows["reason"][row].as_py(), self.rows
        for fault, originals in zip(COPY_FAULTS, self.copies):
            if originals[row] >= 0:
                original = int(originals[row])
                what = "looks like" if fault == "near_duplicate" else "same bytes as"
                other = "" if self._class[original] == self._class[row] else ", which is of another class"
                reason = "; ".join(filter(None, (f"{what} {rows['path'][original]}{other}", reason)))
        return reason

    def _find_copies(self) -> Copies:
        """Return the copies among the files that can be used so far."""
        usable, distance = self._kept(), self.options.near_duplicates
        numbers, content = np.flatnonzero(usable), self.rows.select(["digest", "look"]).filter(pa.array(usable))
        same = content["digest"].combine_chunks().dictionary_encode().indices.to_numpy()
        looks = None if distance is None else content["look"].to_numpy()
        columns = []
        for originals in find_copies(same, self._is_val[numbers], looks, distance=distance or 0):
            column = np.full(len(usable), -1, np.int64)
            column[numbers] = np.where(originals >= 0, numbers[originals], -1)
            columns.append(column)
        return Copies(*columns)

    def _counts(self, rows: npt.NDArray[np.bool_]) -> dict[str, int]:
        """Return how many of these rows, (N,), each class has."""
        return dict(zip(self._names, np.bincount(self._class[rows], minlength=len(self._names)).tolist()))

    def _is_left_out(self, faults: list[str]) -> bool:
        return any(self.policy[fault] == "exclude" for fault in faults)

    def _class_faults(self) -> dict[str, list[str]]:
        """Return the faults of each class.

        Raises:
            InputError: the policy fails on one, or on the counts of the data set.
        """
        expected, kept = EXPECTED.get(self.options.expect or ""), self._kept()
        known = None if expected is None else set(expected.class_names())
        has_train, train, val = map(self._counts, (~self._is_val, kept & ~self._is_val, kept & self._is_val))
        found: dict[str, list[str]] = {}
        for name in sorted({*self._names} - {NO_CLASS}):
            shown = {
                "unknown_synset": known is not None and name not in known,
                "one_split": not has_train[name] or not val[name],
                "empty_class": has_train[name] and not train[name],
                "few_images": 0 < train[name] < FEW_IMAGES,
            }
            found[name] = [fault for fault, is_so in shown.items() if is_so]
            for fault in found[name]:
                if self.policy[fault] == "fail" and not self._is_left_out(found[name]):
                    raise self._refused_class(fault, name)
        if expected is not None and self.policy["wrong_count"] == "fail":
            images = self._side >= 0  # faulty images count; files that are no images do not
            right = {"train": expected.train, "val": expected.val, "classes": expected.classes}
            counts = {"train": int((images & ~self._is_val).sum()), "val": int((images & self._is_val).sum())}
            counts["classes"] = sum(not self._is_left_out(faults) for faults in found.values())
            if counts != right:
                raise InputError(
                    self.root,
                    expected=f"{self.options.expect}: " + ", ".join(f"{n:,} {what}" for what, n in right.items()),
                    found=", ".join(f"{n:,} {what}" for what, n in counts.items()),
                    todo="complete the data set, or accept the difference: --policy wrong_count=accept",
                )
        return found

    def _refused_class(self, fault: str, name: str) -> InputError:
        if fault != "empty_class":
            expected = {
                "unknown_synset": f"classes of {self.options.expect}",
                "one_split": "classes with images in train and val",
                "few_images": f"{FEW_IMAGES} usable training images or more of each class",
            }[fault]
            todo = f"correct the class, or say what to do with it: --policy {fault}=accept"
            return InputError(self.root, expected=expected, found=f"class {name!r}", todo=todo)
        numbers = np.flatnonzero(~self._is_val & (self._class == self._names.index(name)))
        first = self._example(numbers[0])
        return InputError(
            self.root,
            expected=f"a usable training image of class {name!r}",
            found=f"{len(numbers)} faulty files, first {first['path']}: {first['status']}",
            todo="repair the files or remove the class, or leave it out: --policy empty_class=exclude",
        )


def _bits(faults: Iterable[str]) -> np.uint64:
    return np.uint64(sum(int(_BITS[name]) for name in set(faults)))


def _fault_names(faults: np.uint64) -> list[str]:
    return sorted(name for name, bit in _BITS.items() if faults & bit)


def _each(faults: npt.NDArray[np.uint64], function: Callable[[np.uint64], object], dtype: Any) -> npt.NDArray[Any]:
    """Return the function of the faults of each of N rows; it is called once for each combination of faults."""
    combinations, which = np.unique(faults, return_inverse=True)
    return np.array([function(combination) for combination in combinations], dtype)[which.reshape(-1)]


def _encoded(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Return the different values of a column, and for each row the place of its value among them."""
    found = column.combine_chunks().dictionary_encode()
    return found.dictionary.to_pylist(), found.indices.to_numpy()


def _hex(column: pa.ChunkedArray) -> list[Optional[str]]:
    return [None if value is None else value.hex() for value in column.to_pylist()]
