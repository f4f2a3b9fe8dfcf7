"""What only the whole data set shows: copies, classes without images, other counts than expected; and what is kept.

All rows are in memory at once: about 300 MB for ImageNet. The faults of a row are the bits of an integer.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datasets.base.errors import InputError
from datasets.imagenet import EXPECTED
from datasets.layout import NO_CLASS
from datasets.manifest.faults import FAULTS, Outcome, Policy, outcome
from datasets.validation.copies import Copies, find_copies
from datasets.validation.options import ValidationOptions
from datasets.validation.parts import Part, read_part

FEW_IMAGES = 10
COPY_FAULTS = ("leak", "duplicate", "near_duplicate")  # in the order of Copies
COLUMNS = (
    *("path", "split", "class_name", "bytes", "width", "height", "mode", "format"),
    *("digest", "checksum", "reason", "faults", "warnings", "look"),
)

_BITS = {name: np.uint64(1 << place) for place, name in enumerate(FAULTS)}


class Judgement(NamedTuple):
    """What becomes of each of N rows, in the order of the manifest."""

    rows: pa.Table  # COLUMNS of the parts; `faults` are those that the file alone shows
    faults: npt.NDArray[np.uint64]  # (N,) all faults
    copies: Copies
    kept: npt.NDArray[np.bool_]  # (N,)
    failed: npt.NDArray[np.bool_]  # (N,) the file has a fault on which the policy fails
    classes: list[str]


class _Rows(NamedTuple):
    """Columns as arrays, each (N,)."""

    is_val: npt.NDArray[np.bool_]
    of_class: npt.NDArray[np.int32]  # place in `names`
    sides: npt.NDArray[np.int32]  # the shorter side in pixels; -1 if unknown
    names: list[str]


def judge(root: Path, working: Path, options: ValidationOptions, parts: list[Part]) -> Judgement:
    """Read all parts and find what only all of them show.

    Raises:
        InputError: classes or counts are not as the policy demands, or there is no usable validation image.
    """
    policy = options.policy
    rows = _read(working, parts)
    names, of_class = encoded(rows["class_name"])
    sides = np.minimum(*(rows[name].fill_null(-1).to_numpy() for name in ("width", "height")))
    arrays = _Rows(is_val(rows), of_class, sides, names)
    combinations, which = encoded(rows["faults"])
    faults = np.array([bits(filter(None, text.split(","))) for text in combinations], np.uint64)[which]
    faults[(sides >= 0) & (sides < options.min_side)] |= _BITS["small"]
    copies = _find_copies(rows, arrays.is_val, _kept(faults, policy), options)
    for fault, originals in zip(COPY_FAULTS, copies):
        faults[originals >= 0] |= _BITS[fault]
    failed = (faults & bits(name for name in FAULTS if policy[name] == "fail")) > 0
    found = _class_faults(root, rows, arrays, faults, parts, options)
    faults |= np.array([bits(found.get(name, [])) for name in arrays.names], np.uint64)[arrays.of_class]
    kept = _kept(faults, policy)
    if not kept[arrays.is_val].any():
        todo = "add images to val/, or use classes of at least two images"
        raise InputError(root, expected="a usable validation image", found="none", todo=todo)
    train = {part.folder.class_name for part in parts if part.folder.split == "train"}
    classes = sorted(train - {NO_CLASS, *(name for name in found if _is_left_out(found[name], policy))})
    return Judgement(rows, faults, copies, kept, failed, classes)


def bits(faults: Iterable[str]) -> np.uint64:
    """Return faults as bits of an integer."""
    return np.uint64(sum(int(_BITS[name]) for name in set(faults)))


def fault_names(faults: np.uint64) -> list[str]:
    """Return the sorted names of `bits`."""
    return sorted(name for name, bit in _BITS.items() if faults & bit)


def outcome_of(faults: np.uint64, policy: Policy) -> Outcome:
    """Return what becomes of a file with these faults."""
    return outcome(fault_names(faults), policy)


def per_combination(
    faults: npt.NDArray[np.uint64], function: Callable[[np.uint64], object], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return the function of the faults of each of N rows; it is called once for each combination of faults."""
    combinations, which = np.unique(faults, return_inverse=True)
    return np.array([function(combination) for combination in combinations], dtype)[which.reshape(-1)]


def encoded(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Return the different values of a column, and for each row the place of its value among them."""
    found = column.combine_chunks().dictionary_encode()
    return found.dictionary.to_pylist(), found.indices.to_numpy()


def is_val(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Return (N,) whether a row is of the split val."""
    return pc.equal(rows["split"], "val").to_numpy()


def _read(working: Path, parts: list[Part]) -> pa.Table:
    """Return the rows of all parts: those of train, then those of val."""
    tables = [read_part(working, part).select(COLUMNS) for part in parts]
    rows = pa.concat_tables(tables).replace_schema_metadata()
    return pa.concat_tables(
        [rows.filter(pc.equal(rows["split"], split)) for split in ("train", "val")]
    ).combine_chunks()


def _kept(faults: npt.NDArray[np.uint64], policy: Policy) -> npt.NDArray[np.bool_]:
    return per_combination(faults, lambda value: outcome_of(value, policy).kept, bool)


def _find_copies(
    rows: pa.Table, of_val: npt.NDArray[np.bool_], usable: npt.NDArray[np.bool_], options: ValidationOptions
) -> Copies:
    """Return the copies among the usable rows."""
    numbers = np.flatnonzero(usable)
    content = rows.select(["digest", "look"]).filter(pa.array(usable))
    digests = np.frombuffer(b"".join(content["digest"].to_pylist()), np.uint64).reshape(-1, 4)
    looks = None if options.near_duplicates is None else content["look"].to_numpy()
    columns = []
    for originals in find_copies(digests, of_val[numbers], looks, distance=options.near_duplicates or 0):
        column = np.full(len(usable), -1, np.int64)
        column[numbers] = np.where(originals >= 0, numbers[originals], -1)
        columns.append(column)
    return Copies(*columns)


def _is_left_out(faults: list[str], policy: Policy) -> bool:
    return any(policy[fault] == "exclude" for fault in faults)


def _class_faults(
    root: Path,
    rows: pa.Table,
    arrays: _Rows,
    faults: npt.NDArray[np.uint64],
    parts: list[Part],
    options: ValidationOptions,
) -> dict[str, list[str]]:
    """Return the faults of each class that has some.

    Raises:
        InputError: the policy fails on one, or on the counts of the data set.
    """
    policy, expected = options.policy, EXPECTED.get(options.expect or "")
    kept = _kept(faults, policy)
    has_train = {part.folder.class_name for part in parts if part.folder.split == "train"}
    count = {
        split: dict(zip(arrays.names, np.bincount(arrays.of_class[kept & side], minlength=len(arrays.names)).tolist()))
        for split, side in (("train", ~arrays.is_val), ("val", arrays.is_val))
    }
    known = None if expected is None else set(expected.class_names())
    found: dict[str, list[str]] = {}
    for name in sorted({*arrays.names} - {NO_CLASS}):
        train = count["train"][name]
        shown = {
            "unknown_synset": known is not None and name not in known,
            "one_split": name not in has_train or not count["val"][name],
            "empty_class": name in has_train and not train,
            "few_images": 0 < train < FEW_IMAGES,
        }
        found[name] = [fault for fault, is_so in shown.items() if is_so]
        for fault in found[name]:
            if policy[fault] == "fail" and not _is_left_out(found[name], policy):
                raise _refused_class(root, fault, name, rows, arrays, faults, options)
    if expected is not None and policy["wrong_count"] == "fail":
        classes = sum(not _is_left_out(of_class, policy) for of_class in found.values())
        _compare_counts(root, arrays, classes, options.expect or "")
    return found


def _refused_class(
    root: Path,
    fault: str,
    name: str,
    rows: pa.Table,
    arrays: _Rows,
    faults: npt.NDArray[np.uint64],
    options: ValidationOptions,
) -> InputError:
    if fault != "empty_class":
        expected = {
            "unknown_synset": f"classes of {options.expect}",
            "one_split": "classes with images in train and val",
            "few_images": f"{FEW_IMAGES} usable training images or more of each class",
        }[fault]
        todo = f"correct the class, or say what to do with it: --policy {fault}=accept"
        return InputError(root, expected=expected, found=f"class {name!r}", todo=todo)
    numbers = np.flatnonzero(~arrays.is_val & (arrays.of_class == arrays.names.index(name)))
    causes = "none at all"
    if len(numbers):
        first = int(numbers[0])
        causes = f"first {rows['path'][first]}: {outcome_of(faults[first], options.policy).status}"
    return InputError(
        root,
        expected=f"a usable training image of class {name!r}",
        found=f"{len(numbers)} faulty files, {causes}",
        todo="repair the files or remove the class, or leave it out: --policy empty_class=exclude",
    )


def _compare_counts(root: Path, arrays: _Rows, classes: int, name: str) -> None:
    """Compare with the published counts. Faulty images count; files that are no images do not."""
    expected, images = EXPECTED[name], arrays.sides >= 0
    train, val = (int((images & side).sum()) for side in (~arrays.is_val, arrays.is_val))
    counts = {"train": train, "val": val, "classes": classes}
    right = {"train": expected.train, "val": expected.val, "classes": expected.classes}
    if counts != right:
        raise InputError(
            root,
            expected=f"{name}: " + ", ".join(f"{number:,} {what}" for what, number in right.items()),
            found=", ".join(f"{number:,} {what}" for what, number in counts.items()),
            todo="complete the data set, or accept the difference: --policy wrong_count=accept",
        )
