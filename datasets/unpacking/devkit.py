"""The development kit of ILSVRC 2012: the class of each validation image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NoReturn

from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.unpacking.archive import opened

_TRUTH = ("data", "ILSVRC2012_validation_ground_truth.txt")
_META = ("data", "meta.mat")
_DEVKIT_FILE_BYTES = 16 << 20  # far above the size of both files


def is_devkit(path: PathLike) -> bool:
    """Whether an archive has the name of the development kit."""
    return Path(path).name.startswith("ILSVRC2012_devkit")


def read_devkit(path: PathLike) -> tuple[str, ...]:
    """Return the synsets of validation images 1, 2, ... from the development kit.

    Line i of data/ILSVRC2012_validation_ground_truth.txt is the ILSVRC2012_ID of image i. data/meta.mat contains the
    synset of each ID. IDs count from 1 and are not the positions of the sorted synsets. Only leaves (num_children 0)
    are classes.

    Raises:
        InputError: the archive is unsafe or damaged, lacks one of the files, or the files contradict each other.
    """
    files: dict[tuple[str, ...], bytes] = {}
    with opened(path) as archive:
        for member in archive.members():
            key = member.parts[-2:]
            if key in (_TRUTH, _META):
                if key in files or member.size > _DEVKIT_FILE_BYTES:
                    _refuse_devkit(path, f"{'/'.join(member.parts)} of {member.size:,} bytes, or twice")
                files[key] = b"".join(archive.content(member))
    for key in (_TRUTH, _META):
        if key not in files:
            _refuse_devkit(path, f"no {'/'.join(key)}")
    by_id = _leaves(path, files[_META])
    try:
        ids = [int(line) for line in files[_TRUTH].split()]
    except ValueError as error:
        _refuse_devkit(path, f"{'/'.join(_TRUTH)}: {error}")
    unknown = sorted(set(ids) - set(by_id))
    if unknown:
        _refuse_devkit(path, f"{'/'.join(_TRUTH)} with the ID {unknown[0]}, which no leaf of {'/'.join(_META)} has")
    return tuple(by_id[number] for number in ids)


def _leaves(path: PathLike, content: bytes) -> dict[int, str]:
    """Return the synsets by ILSVRC2012_ID."""
    import numpy as np
    from scipy.io import loadmat  # a dependency of scikit-learn

    try:
        rows = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)["synsets"])
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    except Exception as error:  # loadmat raises errors of every kind for damaged files
        _refuse_devkit(path, f"{'/'.join(_META)} that cannot be read: {type(error).__name__}: {error}")


def _refuse_devkit(path: PathLike, found: str) -> NoReturn:
    expected = "the development kit of ILSVRC 2012 with data/meta.mat and the validation ground truth"
    raise InputError(path, expected=expected, found=found, todo="download it again, or leave it out") from None
