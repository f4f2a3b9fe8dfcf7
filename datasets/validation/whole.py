"""What the whole data set shows: copies, classes without images, other counts than expected; and what is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Optional

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datasets.base.errors import InputError
from datasets.expected import EXPECTED
from datasets.layout import NO_CLASS
from datasets.manifest.faults import outcome
from datasets.validation.copies import Copies, find_copies
from datasets.validation.parts import PARTS, Part, as_lists, read_part
from datasets.validation.plan import Options, Plan

FEW_IMAGES = 10
COPY_FAULTS = ("leak", "duplicate", "near_duplicate")
_EXAMPLES = 10


class Block(NamedTuple):
    """Rows of one part and split, which stand together in the manifest from row number `start` on."""

    part: Part
    split: str
    start: int
    rows: int
    sizes: npt.NDArray[np.int32]  # (rows,) shorter side in pixels; -1 where unknown


class Judgement(NamedTuple):
    """What becomes of every row. Row numbers are those of the manifest; N of them."""

    blocks: list[Block]
    copies: Copies
    kept: npt.NDArray[np.bool_]  # (N,)
    classes: list[str]
    class_faults: dict[str, list[str]]  # by class; for the rows of every file in it
    left_out: frozenset[str]  # classes that are no part of the data set


def blocks_of(plan: Plan) -> Iterator[tuple[Part, str]]:
    """Parts and splits in the order of the manifest."""
    for split in ("train", "val"):
        for part in plan.parts:
            if part.folder.split == split or part.val_limit is not None:
                yield part, split


def rows_of(plan: Plan, part: Part, split: str, columns: Optional[list[str]] = None) -> pa.Table:
    """The rows of one block."""
    wanted = columns and sorted({*columns, "split"})
    table = read_part(plan.working / PARTS / part.file, wanted)
    return table if part.val_limit is None else table.filter(pc.equal(table.column("split"), split))


def judge(plan: Plan) -> Judgement:
    """Read all parts and find what only all of them show.

    Raises:
        InputError: classes or counts are not as the policy demands.
    """
    options = plan.options
    blocks: list[Block] = []
    usable, digests, looks = [], [], []
    start = 0
    for part, split in blocks_of(plan):
        table = rows_of(plan, part, split, ["faults", "digest", "width", "height", "look"])
        sizes = _shorter_sides(table)
        blocks.append(Block(part, split, start, len(table), sizes))
        start += len(table)
        usable.append(_usable(table, sizes, options))
        digests.append(_digests(table))
        if options.near_duplicates is not None:
            looks.append(table.column("look").fill_null(0).to_numpy())
    kept = np.concatenate(usable)
    is_val = np.repeat([block.split == "val" for block in blocks], [block.rows for block in blocks])
    copies = _copies(kept, np.concatenate(digests), is_val, np.concatenate(looks) if looks else None, options)
    for fault, originals in zip(COPY_FAULTS, copies):
        if not outcome([fault], options.policy).kept:
            kept &= originals < 0
    class_faults, left_out = _judge_classes(plan, blocks, copies, kept)
    for block in blocks:
        if block.part.folder.class_name in left_out:
            kept[block.start : block.start + block.rows] = False
    if not kept[is_val].any():
        todo = "add images to val/, or use classes of at least two images"
        raise InputError(plan.root, expected="a usable validation image", found="none", todo=todo)
    names = {block.part.folder.class_name for block in blocks if block.split == "train"}
    classes = sorted(names - left_out - {NO_CLASS})
    return Judgement(blocks, copies, kept, classes, class_faults, left_out)


def faults_of_block(judgement: Judgement, block: Block, faults: list[str], options: Options) -> list[str]:
    """The faults of a block's rows as a part has them, completed by what the whole data set shows."""
    more: dict[int, list[str]] = {}
    for place in np.flatnonzero((block.sizes >= 0) & (block.sizes < options.min_side)):
        more.setdefault(int(place), []).append("small")
    for fault, originals in zip(COPY_FAULTS, judgement.copies):
        for place in np.flatnonzero(originals[block.start : block.start + block.rows] >= 0):
            more.setdefault(int(place), []).append(fault)
    completed = list(faults)
    common = judgement.class_faults.get(block.part.folder.class_name, [])
    for place in range(len(faults)) if common else more:
        found = {*filter(None, faults[place].split(",")), *more.get(place, ()), *common}
        completed[place] = ",".join(sorted(found))
    return completed


def _shorter_sides(table: pa.Table) -> npt.NDArray[np.int32]:
    width, height = (table.column(name).fill_null(-1).to_numpy() for name in ("width", "height"))
    sides: npt.NDArray[np.int32] = np.minimum(width, height)
    return sides


def _usable(table: pa.Table, sizes: npt.NDArray[np.int32], options: Options) -> npt.NDArray[np.bool_]:
    """(rows,) whether the file itself is good enough to be kept."""
    policy = options.policy
    keeps = {
        faults: outcome(filter(None, faults.split(",")), policy).kept for faults in table["faults"].unique().to_pylist()
    }
    kept = np.array([keeps[faults] for faults in table.column("faults").to_pylist()], bool)
    return kept if outcome(["small"], policy).kept else kept & ~((sizes >= 0) & (sizes < options.min_side))


def _digests(table: pa.Table) -> npt.NDArray[np.uint64]:
    """(rows, 4)."""
    content = b"".join(digest or bytes(32) for digest in table.column("digest").to_pylist())
    return np.frombuffer(content, np.uint64).reshape(-1, 4)


def _copies(
    usable: npt.NDArray[np.bool_],
    digests: npt.NDArray[np.uint64],
    is_val: npt.NDArray[np.bool_],
    looks: Optional[npt.NDArray[np.uint64]],
    options: Options,
) -> Copies:
    """Copies among the usable rows."""
    numbers = np.flatnonzero(usable)
    seen = None if looks is None else looks[numbers]
    found = find_copies(digests[numbers], is_val[numbers], seen, distance=options.near_duplicates or 0)
    whole = []
    for originals in found:
        column = np.full(len(usable), -1, np.int64)
        column[numbers] = np.where(originals >= 0, numbers[originals], -1)
        whole.append(column)
    return Copies(*whole)


def _judge_classes(
    plan: Plan, blocks: list[Block], copies: Copies, kept: npt.NDArray[np.bool_]
) -> tuple[dict[str, list[str]], frozenset[str]]:
    """The faults of classes, and which classes are left out for them."""
    policy, expected = plan.options.policy, EXPECTED.get(plan.options.expect or "")
    count: Counter[tuple[str, str]] = Counter()
    names: set[str] = set()
    for block in blocks:
        name = block.part.folder.class_name
        names.add(name)
        count[block.split, name] += int(kept[block.start : block.start + block.rows].sum())
    faults: dict[str, list[str]] = {}
    known = None if expected is None else set(expected.class_names())
    for name in sorted(names - {NO_CLASS}):
        train, val = count["train", name], count["val", name]
        found = faults.setdefault(name, [])
        if known is not None and name not in known:
            found.append("unknown_synset")
        has_train = any(block.split == "train" and block.part.folder.class_name == name for block in blocks)
        if not has_train or not val:
            found.append("one_split")
        if has_train and not train:
            found.append("empty_class")
        elif 0 < train < FEW_IMAGES:
            found.append("few_images")
    left_out = frozenset(name for name, found in faults.items() if any(policy[fault] == "exclude" for fault in found))
    for name, found in faults.items():
        for fault in found:
            if policy[fault] == "fail" and name not in left_out:
                _refuse_class(plan, fault, name, blocks, copies)
    if expected is not None and policy["wrong_count"] == "fail":
        _compare_counts(plan, blocks, len(names - {NO_CLASS} - left_out))
    return {name: found for name, found in faults.items() if found}, left_out


def _refuse_class(plan: Plan, fault: str, name: str, blocks: list[Block], copies: Copies) -> None:
    if fault != "empty_class":
        expected = {
            "unknown_synset": f"classes of {plan.options.expect}",
            "one_split": "classes with images in train and val",
            "few_images": f"{FEW_IMAGES} usable training images or more of each class",
        }[fault]
        todo = f"correct the class, or say what to do with it: --policy {fault}=accept"
        raise InputError(plan.root, expected=expected, found=f"class {name!r}", todo=todo)
    causes, number = "none at all", 0
    for block in blocks:
        if (block.split, block.part.folder.class_name) == ("train", name) and block.rows:
            if not number:
                paths, faults = as_lists(rows_of(plan, block.part, "train", ["path", "faults"]), "path", "faults")
                found = [fault for fault, rows in zip(COPY_FAULTS, copies) if rows[block.start] >= 0]
                found += filter(None, faults[0].split(","))
                causes = f"first {paths[0]}: {outcome(found, plan.options.policy).status}"
            number += block.rows
    raise InputError(
        plan.root,
        expected=f"a usable training image of class {name!r}",
        found=f"{number} faulty files, {causes}",
        todo="repair the files or remove the class, or leave it out: --policy empty_class=exclude",
    )


def _compare_counts(plan: Plan, blocks: list[Block], classes: int) -> None:
    """Files of the class folders are counted, whatever is wrong with them, but for what is no image at all."""
    expected = EXPECTED[plan.options.expect or ""]
    found = {
        split: sum(int((block.sizes >= 0).sum()) for block in blocks if block.split == split)
        for split in ("train", "val")
    }
    counts = {**found, "classes": classes}
    right = {"train": expected.train, "val": expected.val, "classes": expected.classes}
    if counts != right:
        raise InputError(
            plan.root,
            expected=f"{plan.options.expect}: " + ", ".join(f"{number:,} {name}" for name, number in right.items()),
            found=", ".join(f"{number:,} {name}" for name, number in counts.items()),
            todo="complete the data set, or go on with it: --policy wrong_count=accept",
        )
