"""Tars as the tests need them, good and bad, and small made-up ones in the manner of ILSVRC 2012."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from scipy.io import savemat

SYNSETS = ("n01440764", "n01443537", "n01484850", "n02123045", "n03792782", "n09835506")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def pack(files: Mapping[str, bytes] | Iterable[tuple[str | tarfile.TarInfo, bytes]], how: str = "w") -> bytes:
    """A tar of these files, or members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=how) as tar:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            info = member(name, size=len(content)) if isinstance(name, str) else name
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def content(name: str, most: int = 20_000) -> bytes:
    """Bytes that belong to a name, of a length that does too."""
    draw = random.Random(name)
    return draw.randbytes(draw.randrange(1, most))


def class_files(synset: str, count: int) -> dict[str, bytes]:
    names = [f"{synset}_{number}.JPEG" for number in random.Random(synset).sample(range(1, 30_000), count)]
    return {name: content(name) for name in names}


def train_tree(synsets: Iterable[str] = SYNSETS, count: int = 12) -> dict[str, bytes]:
    """What the train tar of `train_tar` unpacks to, by path."""
    return {
        f"train/{synset}/{name}": data
        for number, synset in enumerate(synsets)
        for name, data in class_files(synset, count + number).items()
    }


def train_tar(synsets: Iterable[str] = SYNSETS, count: int = 12) -> bytes:
    return pack({f"{s}.tar": pack(class_files(s, count + number)) for number, s in enumerate(synsets)})


def val_names(count: int) -> list[str]:
    return [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, count + 1)]


def val_tar(count: int = 40) -> bytes:
    return pack({name: content(name) for name in val_names(count)})


def devkit(classes: list[str], synsets: list[str], inner: Iterable[str] = ("n00001740", "n00021939")) -> bytes:
    """The devkit of validation images with these classes; the IDs of the synsets are 1, 2, ... as listed.

    `inner` are synsets with children, which the real meta.mat lists behind the leaves.
    """
    kind = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8"), ("num_train_images", "f8")]
    rows = [(number, name, f"a {name}", 0, 13) for number, name in enumerate(synsets, 1)]
    rows += [(len(rows) + number, name, f"a {name}", 2, 0) for number, name in enumerate(inner, 1)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kind).reshape(-1, 1)})
    ids = {name: number for number, name in enumerate(synsets, 1)}
    truth = "".join(f"{ids[name]}\n" for name in classes).encode()
    top = "ILSVRC2012_devkit_t12"
    return pack(
        [
            (member(f"{top}/", tarfile.DIRTYPE), b""),
            (f"{top}/readme.txt", b"made up"),
            (f"{top}/data/ILSVRC2012_validation_ground_truth.txt", truth),
            (f"{top}/data/meta.mat", meta.getvalue()),
        ],
        "w:gz",
    )


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder, and every empty folder as a name that ends with /."""
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    empty = {f"{path.relative_to(root)}/": b"" for path in root.rglob("*") if path.is_dir() and not any(path.iterdir())}
    return found | empty


def images(root: Path) -> dict[str, bytes]:
    """`tree` without the list of archives."""
    return {name: data for name, data in tree(root).items() if name != "unpack.json"}
