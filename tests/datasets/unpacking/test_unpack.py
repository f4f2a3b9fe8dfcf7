"""Unpacking of tars: known layouts, refused archives, repeated and killed calls."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from datasets import imagenet
from datasets.base.errors import InputError
from datasets.unpacking import unpack_archives
from datasets.unpacking.devkit import read_devkit
from tests.commit_points import kill_at_commit_points
from tests.datasets.tars import (
    SYNSETS,
    content,
    devkit,
    images,
    member,
    pack,
    train_tar,
    train_tree,
    tree,
    val_names,
    val_tar,
    written,
)

ROOT = Path(__file__).parents[3]
FEW = {"a.jpg": content("a"), "b.jpg": content("b")}


def unpack(tars, out, **options):
    """Without worker processes, unless the test asks for them."""
    return unpack_archives(tars, out, **{"workers": 1, **options})


def under(folder, files=FEW):
    return {f"{folder}/{name}": data for name, data in files.items()}


@pytest.fixture
def train(tmp_path):
    return written(tmp_path / imagenet.TRAIN_TAR, train_tar())


def test_train_tar(tmp_path, train):
    found = unpack([train], tmp_path / "out", check_md5=False, workers=2)
    assert images(tmp_path / "out") == train_tree()
    assert (found.train, found.val, found.classes, found.left_out, found.reused) == (len(train_tree()), 0, 6, 0, False)
    (entry,) = json.loads((tmp_path / "out/unpack.json").read_text())["archives"].items()
    assert entry[0] == imagenet.TRAIN_TAR
    assert (entry[1]["identity"]["bytes"], entry[1]["md5"], entry[1]["kind"]) == (train.stat().st_size, None, "tars")
    assert entry[1]["folders"] == {f"train/{synset}": 12 + number for number, synset in enumerate(SYNSETS)}


def test_val_tar_by_the_packaged_table(tmp_path):
    tar = written(tmp_path / imagenet.VAL_TAR, val_tar(10))
    found = unpack([tar], tmp_path / "out", check_md5=False)
    # as public lists of the validation labels begin
    synsets = "n01751748 n09193705 n02105855 n04263257 n03125729 n01735189 n02346627 n02776631 n03794056 n02328150"
    assert images(tmp_path / "out") == {
        f"val/{s}/{name}": content(name) for s, name in zip(synsets.split(), val_names(10), strict=True)
    }
    assert (found.train, found.val, found.classes) == (0, 10, 10)


def test_val_tar_by_the_devkit(tmp_path):
    """The devkit is believed, not the table; its IDs are not the order of the synsets."""
    synsets = list(reversed(SYNSETS))
    classes = [random.Random(n).choice(synsets) for n in range(40)]
    tars = [written(tmp_path / imagenet.VAL_TAR, val_tar(40)), written(tmp_path / "ILSVRC2012_devkit.tar.gz", b"")]
    tars[1].write_bytes(devkit(classes, synsets))
    unpack(tars, tmp_path / "out", check_md5=False)
    assert images(tmp_path / "out") == {
        f"val/{s}/{name}": content(name) for s, name in zip(classes, val_names(40), strict=True)
    }


def test_table_and_devkit_agree(tmp_path):
    """A devkit of all 50,000 images, its IDs shuffled, gives each image the class that the table gives it."""
    names = val_names(imagenet.VAL_IMAGES)
    table = [imagenet.val_synset(name) for name in names]
    synsets = list(imagenet.synsets())
    random.Random(0).shuffle(synsets)
    kit = written(tmp_path / imagenet.DEVKIT, devkit(table, synsets))
    assert list(read_devkit(kit)) == table
    assert {table.count(synset) for synset in synsets[:20]} == {50}


def test_facts():
    assert len(set(imagenet.synsets())) == len(imagenet.class_names()) == imagenet.CLASSES
    assert list(imagenet.synsets()) == sorted(imagenet.synsets())
    known = {0: ("n01440764", "tench"), 1: ("n01443537", "goldfish"), 9: ("n01518878", "ostrich")}
    assert {n: (imagenet.synsets()[n], imagenet.class_names()[n]) for n in known} == known
    assert imagenet.synsets()[999] == "n15075141"
    assert [imagenet.val_number(name) for name in ("ILSVRC2012_val_00000012.JPEG", "12.JPEG")] == [12, None]
    assert imagenet.val_synset("ILSVRC2012_val_00050001.JPEG") is None


KNOWN = {  # archive name, its files, what they become
    "class_folders": ("a.tar", under("cat") | under("dog"), under("train/cat") | under("train/dog")),
    "one_class": ("a.tar", under("cat"), under("train/cat")),
    "dot_names": ("a.tar", under("./cat") | under("./dog//"), under("train/cat") | under("train/dog")),
    "one_folder_around": ("a.tar", under("pets/cat") | under("pets/dog"), under("train/cat") | under("train/dog")),
    "splits": ("a.tar", under("train/cat") | under("val/cat"), under("train/cat") | under("val/cat")),
    "splits_in_a_folder": ("a.tar", under("x/train/cat") | under("x/val/cat"), under("train/cat") | under("val/cat")),
    "one_split": ("a.tar", under("x/train/cat") | under("x/train/dog"), under("train/cat") | under("train/dog")),
    "one_class_of_one_split": ("a.tar", under("val/cat"), under("val/cat")),
    "a_class_called_train": ("a.tar", under("train") | under("plane"), under("train/train") | under("train/plane")),
    "folders_in_classes": ("a.tar", under("cat/x") | under("dog"), under("train/cat/x") | under("train/dog")),
    "interleaved": (
        "a.tar",
        {name: data for pair in zip(under("cat").items(), under("dog").items(), strict=True) for name, data in pair},
        under("train/cat") | under("train/dog"),
    ),
    "tars": ("a.tar", {"cat.tar": pack(FEW), "dog.tar": pack(under("d"))}, under("train/cat") | under("train/dog/d")),
    "long_names": ("a.tar", under("c" * 120) | under("d/" + "e" * 200), None),
    "names_beyond_ascii": ("a.tar", under("猫") | under("犬"), under("train/猫") | under("train/犬")),
    "empty_file": (
        "a.tar",
        under("cat", {"x": b""}) | under("dog"),
        under("train/cat", {"x": b""}) | under("train/dog"),
    ),
}


COMPRESSED = ["class_folders", "splits", "long_names"]


@pytest.mark.parametrize(
    ("case", "how"),
    [(case, "w") for case in KNOWN] + [(case, f"w:{how}") for how in ("gz", "bz2", "xz") for case in COMPRESSED],
)
def test_known_archives(tmp_path, case, how):
    name, files, expected = KNOWN[case]
    name += how[1:].replace(":", ".")
    expected = expected or {f"train/{path}": data for path, data in files.items()}
    found = unpack([written(tmp_path / name, pack(files, how))], tmp_path / "out")
    assert images(tmp_path / "out") == expected
    assert found.train + found.val == len(expected)


def test_files_outside_of_class_folders_are_left_out_and_counted(tmp_path, caplog):
    files = under("x/train/cat") | under("x/val/cat") | under("x/test") | {"x/README": b"", "x/train/README": b""}
    found = unpack([written(tmp_path / "a.tar", pack(files))], tmp_path / "out")
    assert images(tmp_path / "out") == under("train/cat") | under("val/cat")
    assert found.left_out == 4
    assert "4 files outside of class folders are left out" in caplog.text
    assert json.loads((tmp_path / "out/unpack.json").read_text())["archives"]["a.tar"]["left_out"] == 4


def broken(tar, place, data):
    return tar[:place] + data + tar[place + len(data) :]


def negative_size():
    """A header whose length, in base 256, is -1024: read naively, the next header is this one again."""
    tar = bytearray(pack(FEW))
    tar[124:136] = b"\xff" * 4 + struct.pack(">q", -1024)
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    return bytes(tar)


def forged_long_name():
    """A long name of 4 GB, announced in a sparse file of that length."""
    info = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=1 << 32)
    return info.tobuf(tarfile.GNU_FORMAT)


LINK, DEVICE = {"link": "../../target"}, {}
GOOD = ("cat/a.jpg", b"x")
UNSAFE = {
    "parent": ([GOOD, ("cat/../../evil", b"x")], "the name 'cat/../../evil'"),
    "parent_first": ([GOOD, ("../evil", b"x")], r"the name '\.\./evil'"),
    "absolute": ([GOOD, ("/tmp/evil", b"x")], "the name '/tmp/evil'"),
    "folder_outside": ([GOOD, (member("../evil", tarfile.DIRTYPE), b"")], r"the name '\.\./evil'"),
    "symbolic_link": ([GOOD, (member("cat/l", tarfile.SYMTYPE, "/etc"), b"")], "a symbolic link, 'cat/l'"),
    "through_a_link": ([(member("cat", tarfile.SYMTYPE, "/tmp"), b""), GOOD], "a symbolic link, 'cat'"),
    "hard_link": ([GOOD, (member("cat/l", tarfile.LNKTYPE, "/etc/passwd"), b"")], "a hard link, 'cat/l'"),
    "character_device": ([GOOD, (member("cat/d", tarfile.CHRTYPE), b"")], "a character device, 'cat/d'"),
    "block_device": ([GOOD, (member("cat/d", tarfile.BLKTYPE), b"")], "a block device, 'cat/d'"),
    "fifo": ([GOOD, (member("cat/p", tarfile.FIFOTYPE), b"")], "a fifo, 'cat/p'"),
    "unknown_type": ([GOOD, (member("cat/p", b"Z"), b"")], "a member of type b'Z', 'cat/p'"),
    "twice": ([GOOD, ("cat/b.jpg", b"x"), GOOD], "'cat/a.jpg' twice"),
    "twice_by_another_name": ([GOOD, ("./cat//a.jpg", b"y")], "'cat/a.jpg' twice"),
    "file_and_folder": ([GOOD, ("dog/a.jpg", b"x"), ("cat/a.jpg/b.jpg", b"x")], "'cat/a.jpg/b.jpg' twice"),
    "long_name": ([GOOD, ("cat/" + "n" * 300, b"x")], "a name of more than 255 bytes"),
    "no_name": ([GOOD, (member("./.", size=1), b"x")], "a file without a name"),
}


@pytest.mark.parametrize("inner", [False, True], ids=["folders", "inner_tar"])
@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_members_are_refused(tmp_path, case, inner):
    members, message = UNSAFE[case]
    tar = pack(members)
    if inner:
        tar = pack({"good.tar": pack(FEW), "bad.tar": tar})
    path = written(tmp_path / "in/a.tar", tar)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        unpack([path], tmp_path / "in/deep/out", workers=2)
    assert ("bad.tar" if inner else "a.tar: ") in str(caught.value)
    assert not (tmp_path / "in/deep/out").exists()
    assert {name: data for name, data in tree(tmp_path).items() if name != "in/deep/"} == before


LAYOUTS = r"expected one of: .*<class>\.tar per class; .*validation.*; folders train/<class>/ .*; folders <class>/"
CLASSES = pack(under("cat") | under("dog"))
TINY = pack(FEW)
TARS = pack({"cat.tar": pack(FEW), "dog.tar": pack(FEW)})
VAL = pack({val_names(2)[0]: b"x", val_names(2)[1]: b"y"})
REFUSED = {  # archive name, bytes, message
    "not_a_tar": ("a.tar", b"\xff\xd8" * 2000, "expected a tar archive, found none"),
    "empty_file": ("a.tar", b"", "expected a tar archive, found none"),
    "text": ("a.tar", b"not yet\n", "expected a tar archive, found none"),
    "no_files": ("a.tar", pack({}), "found no file in it"),
    "only_folders": ("a.tar", pack([(member("cat", tarfile.DIRTYPE), b"")]), "found no file in it"),
    "cut_in_content": ("a.tar", CLASSES[:3000], r"a truncated one \(it ends within 'cat/a.jpg'\)"),
    "cut_at_a_member": ("a.tar", pack({"c/a": b"x", "c/b": b"x"})[:2048], "a truncated one at byte 2,048"),
    "cut_in_a_header": ("a.tar", pack({"c/a": b"x", "c/b": b"x"})[:1124], "a truncated one at byte 1,024"),
    "damaged_header": ("a.tar", broken(pack({"c/a": b"x", "c/b": b"x"}), 1034, b"\x80"), "a damaged one at byte 1,024"),
    "negative_size": ("a.tar", negative_size(), "expected a (whole )?tar archive"),
    "forged_long_name": ("a.tar", pack({"c/a": b"x"})[:1024] + forged_long_name() + bytes(1024), "a damaged one"),
    "cut_gzip": ("a.tar.gz", gzip.compress(CLASSES)[:-4000], "a truncated one"),
    "damaged_gzip": (
        "a.tar.gz",
        broken(gzip.compress(CLASSES), 3000, bytes(50)),
        "expected a tar archive, found none .*decompress",
    ),
    "gzip_checksum": (
        "a.tar.gz",
        broken(gzip.compress(CLASSES), len(gzip.compress(CLASSES)) - 8, b"abcd"),
        "a damaged",
    ),
    "gzip_of_no_tar": ("a.tar.gz", gzip.compress(b"text" * 1000), "expected a tar archive, found none"),
    "inner_is_no_tar": (
        "a.tar",
        pack({"cat.tar": pack(FEW), "dog.tar": b"x" * 9999}),
        r"a\.tar: dog\.tar: .*found none",
    ),
    "inner_is_cut": (
        "a.tar",
        pack({"cat.tar": pack(FEW), "dog.tar": pack(FEW)[:900]}),
        r"a\.tar: dog\.tar: .*a truncated",
    ),
    "inner_is_empty": ("a.tar", pack({"cat.tar": pack(FEW), "dog.tar": pack({})}), "dog.tar: .*found no file in it"),
    "tars_cut": ("a.tar", TARS[: len(TARS) * 2 // 3], "a truncated one"),
    "tars_and_others": (
        "a.tar",
        pack({"cat.tar": pack(FEW), "a.jpg": b""}),
        "found 1 tars, some of them in folders or among 1 other files",
    ),
    "tars_of_one_class": ("a.tar", pack([("c.tar", TINY), ("c.tar", TINY)]), "expected each class once"),
    "tars_in_folders": (
        "a.tar",
        pack({"train/c.tar": pack(FEW), "val/c.tar": pack(FEW)}),
        "found 2 tars, some of them",
    ),
    "files_without_a_folder": ("cat.tar", pack(FEW), f"{LAYOUTS}, found 2 files outside of class folders"),
    "compressed_tars": ("a.tar.gz", gzip.compress(TARS), "expected a plain tar of tars, found a compressed one"),
    "class_that_leaves": ("a.tar", pack({"cat.tar": pack(FEW), "...tar": pack(FEW)}), r"the name '\.\.'"),
    "class_without_name": ("a.tar", pack({"cat.tar": TINY, ".tar": TINY}), "tars named after their classes"),
    "test_images": ("a.tar", pack(under("test", {"ILSVRC2012_test_00000001.JPEG": b""})), "classes are not published"),
    "among_val": ("a.tar", pack({val_names(1)[0]: b"", "notes.txt": b""}), "validation images .* found 'notes.txt'"),
    "before_val": ("a.tar", pack({"a.txt": b"", val_names(1)[0]: b""}), "validation images .* found 'a.txt'"),
    "beyond_val": ("a.tar", pack({"ILSVRC2012_val_00050001.JPEG": b""}), "to ILSVRC2012_val_00050000.JPEG only"),
    "split_without_classes": ("a.tar", pack(under("train")), f"{LAYOUTS}, found 2 files outside of class folders"),
    "md5": (imagenet.VAL_TAR, VAL, f"md5 {imagenet.MD5[imagenet.VAL_TAR]}, found md5 .*--skip-md5"),
    "missing": ("a.tar", None, "expected a tar archive, found No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_archives_are_refused(tmp_path, case):
    name, data, message = REFUSED[case]
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        unpack([path], tmp_path / "out", check_md5=case == "md5")
    assert not (tmp_path / "out").exists()


def without(name):
    with tarfile.open(fileobj=gzip.open(io.BytesIO(devkit(["n01440764"], ["n01440764"])))) as tar:
        return pack([(i, tar.extractfile(i).read()) for i in tar if i.isreg() and not i.name.endswith(name)], "w:gz")


BAD_DEVKITS = {
    "no_meta": (without("meta.mat"), "found no data/meta.mat"),
    "no_truth": (without("ground_truth.txt"), "found no data/ILSVRC2012_validation_ground_truth.txt"),
    "meta_damaged": (
        pack({"d/data/meta.mat": b"x" * 300, "d/data/ILSVRC2012_validation_ground_truth.txt": b"1\n"}, "w:gz"),
        "data/meta.mat that cannot be read",
    ),
    "cut": (devkit(["n01440764"], ["n01440764"])[:-50], "a truncated one"),
    "too_few_lines": (devkit(["n01440764"], ["n01440764"]), "to ILSVRC2012_val_00000001.JPEG only.* found .*00000002"),
}


@pytest.mark.parametrize("case", BAD_DEVKITS)
def test_bad_devkits_are_refused(tmp_path, case):
    kit = written(tmp_path / imagenet.DEVKIT, BAD_DEVKITS[case][0])
    with pytest.raises(InputError, match=BAD_DEVKITS[case][1]):
        unpack([written(tmp_path / "v.tar", VAL), kit], tmp_path / "out", check_md5=False)
    assert not (tmp_path / "out").exists()


def test_ids_of_inner_synsets_are_no_classes(tmp_path):
    kit = devkit(["n01440764"], ["n01440764"], inner=())
    files = {}
    with tarfile.open(fileobj=gzip.open(io.BytesIO(devkit(["n01440764"], ["n01440764"])))) as tar:
        files = {i.name: tar.extractfile(i).read() for i in tar if i.isreg()}
    truth = next(name for name in files if name.endswith("truth.txt"))
    kit = written(tmp_path / imagenet.DEVKIT, pack({**files, truth: b"1\n2\n"}, "w:gz"))
    with pytest.raises(InputError, match="with the ID 2, which no leaf of"):
        read_devkit(kit)


CALLS = {
    "none": ([], "archives: expected at least one of images, found none"),
    "devkit_only": ([imagenet.DEVKIT], "archives: expected at least one of images"),
    "same_name": (["a.tar", "b/a.tar"], "archives: expected each name once, found a.tar twice"),
    "same_class": (["a.tar", "c.tar"], "train/cat: expected each class in one archive, found it in a.tar too"),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls(tmp_path, case):
    names, message = CALLS[case]
    for name in names:
        kit = devkit(["n01440764"], ["n01440764"])
        written(tmp_path / name, kit if name == imagenet.DEVKIT else CLASSES)
    with pytest.raises(InputError, match=message):
        unpack([tmp_path / name for name in names], tmp_path / "out", check_md5=False)
    assert not (tmp_path / "out").exists()


def test_published_md5s(tmp_path, train, monkeypatch):
    """Computed for each published name, and not again by the next call."""
    data = train.read_bytes()
    monkeypatch.setitem(imagenet.MD5, train.name, hashlib.md5(data).hexdigest())
    unpack([train], tmp_path / "out")
    recorded = json.loads((tmp_path / "out/unpack.json").read_text())
    assert recorded["archives"][train.name]["md5"] == hashlib.md5(data).hexdigest()
    with monkeypatch.context() as inner:
        inner.setattr(hashlib, "md5", None)
        assert unpack([train], tmp_path / "out").reused
    image = next(iter(train_tree().values()))
    train.write_bytes(broken(data, data.index(image), b"damage"))  # names and sizes are as they were
    with pytest.raises(InputError, match="the published archive, md5"):
        unpack([train], tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="n01440764: expected none before"):
        unpack([train], tmp_path / "out")
    assert images(tmp_path / "out") == train_tree()


def test_repeated_calls(tmp_path, train):
    """Archives one after the other into one root, and again: what is finished is kept, file by file."""
    out = tmp_path / "out"
    val = written(tmp_path / imagenet.VAL_TAR, val_tar(12))
    unpack([train], out, check_md5=False)
    assert not unpack([val], out, check_md5=False).reused
    before = {path: path.stat() for path in out.rglob("*") if path.is_file()}
    again = unpack([val, train], out, check_md5=False)
    assert (again.train, again.val, again.reused) == (len(train_tree()), 12, True)
    assert {path: path.stat() for path in out.rglob("*") if path.is_file()} == before | {
        path: path.stat() for path in before if path.stat().st_atime_ns != before[path].st_atime_ns
    }
    both = unpack([train, val], tmp_path / "both", check_md5=False)
    assert tree(both.root) == tree(out)


@pytest.mark.parametrize("kind", ["train", "val"])
def test_a_removed_class_folder_is_unpacked_again(tmp_path, train, kind):
    tars = [train, written(tmp_path / imagenet.VAL_TAR, val_tar(12))]
    unpack(tars, tmp_path / "out", check_md5=False)
    before = tree(tmp_path / "out")
    kept, removed = sorted((tmp_path / "out" / kind).iterdir())[:2]
    inode = kept.stat().st_ino
    shutil.rmtree(removed)
    assert not unpack(tars, tmp_path / "out", check_md5=False).reused
    assert tree(tmp_path / "out") == before
    assert kept.stat().st_ino == inode


@pytest.mark.parametrize("change", ["removed", "added"])
def test_a_changed_class_folder_is_not_replaced(tmp_path, train, change):
    unpack([train], tmp_path / "out", check_md5=False)
    folder = tmp_path / "out/train/n01440764"
    if change == "removed":
        next(folder.iterdir()).unlink()
    else:
        (folder / "mine.jpg").write_bytes(b"mine")
    before = tree(tmp_path / "out")
    with pytest.raises(InputError, match=r"/n01440764: expected the 12 files of .*, found a folder of 1[13] files"):
        unpack([train], tmp_path / "out", check_md5=False)
    assert tree(tmp_path / "out") == before


def test_foreign_files_are_kept(tmp_path, train):
    own = {"train/n01440764/mine.jpg": b"mine"}
    written(tmp_path / "out/train/n01440764/mine.jpg", b"mine")
    with pytest.raises(InputError, match=r"train/n01440764: expected none before .*, found a folder of 1 files"):
        unpack([train], tmp_path / "out", check_md5=False)
    assert tree(tmp_path / "out") == own


def test_other_classes_and_files_stay(tmp_path, train):
    own = {"train/mine/a.jpg": b"mine", "README": b"mine", "val/n01440764/mine.jpg": b"mine"}
    for name, data in own.items():
        written(tmp_path / "out" / name, data)
    unpack([train], tmp_path / "out", check_md5=False)
    assert images(tmp_path / "out") == train_tree() | own


def command(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "mae", "data", "unpack", *map(str, arguments)]
    return subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def unpack_all(tars, out):
    unpack(tars, out, check_md5=False)


def test_killed_at_every_commit_point(tmp_path):
    """SIGKILL at every change of a file, then the same call: the tree of an undisturbed run."""
    tars = [
        written(tmp_path / imagenet.TRAIN_TAR, train_tar(SYNSETS[:2], 2)),
        written(tmp_path / imagenet.VAL_TAR, val_tar(3)),
    ]
    undisturbed, out = tree(unpack(tars, tmp_path / "undisturbed", check_md5=False).root), tmp_path / "out"

    def check(_):
        published = {name: data for split in ("train", "val") for name, data in images_of(out, split).items()}
        assert published.items() <= undisturbed.items()
        finished = {path.name: path.stat().st_ino for path in out.glob(f".unpack/{imagenet.TRAIN_TAR}-*/done/*/*/*")}
        unpack_all(tars, out)
        assert tree(out) == undisturbed
        assert finished.items() <= {path.name: path.stat().st_ino for path in out.glob("train/*/*")}.items()

    work = partial(unpack_all, tars, out)
    assert kill_at_commit_points(work, check, reset=partial(shutil.rmtree, out, ignore_errors=True)) > 15


def images_of(out, split):
    return {f"{split}/{name}": data for name, data in images(out / split).items()}


def test_the_next_call_waits_for_workers_of_a_killed_one(tmp_path, train):
    """They live on for up to half a second, and hold the folder that they write to."""
    process = command(train, "--out", tmp_path / "out", "--skip-md5", "--workers", 2)
    while not any((tmp_path / "out").glob(".unpack/*/*")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait(timeout=60)
    unpack([train], tmp_path / "out", check_md5=False)
    assert images(tmp_path / "out") == train_tree()


def test_a_killed_run_of_an_archive_that_was_replaced_is_forgotten(tmp_path, train):
    out = tmp_path / "out"
    stale = written(out / f".unpack/{train.name}-0123456789ab/done/train/n01440764/x.JPEG", b"of another archive")
    other = written(out / ".unpack/other.tar-0123456789ab/done/train/cat/x.JPEG", b"of another call")
    unpack([train], out, check_md5=False)
    assert not stale.exists()
    assert {name: data for name, data in images(out).items() if name != str(other.relative_to(out))} == train_tree()
    assert other.exists()


def test_a_full_disk_leaves_nothing(tmp_path, train):
    """By a limit on the size of files, which the worker processes inherit; tests/privileged has a really full disk."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))  # noqa: E731
    process = command(train, "--out", tmp_path / "out", "--skip-md5", preexec_fn=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"mae: {tmp_path}/out: expected room for all images of the archives, found File too large" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_no_room_is_said_before_anything_is_written(tmp_path, train, monkeypatch):
    monkeypatch.setattr("datasets.unpacking.unpack.in_processes", None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 10_000}))
    with pytest.raises(InputError, match=r"expected room for 0\.\d+ GB of images, found 0\.000 GB free"):
        unpack([train], tmp_path / "out", check_md5=False)
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_number_of_files(tmp_path):
    """20 times the files of a folder take less than 0.5 MB more of Python's memory."""
    code = (
        "import sys, tracemalloc; from datasets.unpacking import unpack_archives; tracemalloc.start();"
        "unpack_archives([sys.argv[1]], sys.argv[2], workers=1); print(tracemalloc.get_traced_memory()[1])"
    )
    peaks = []
    for count in (100, 2000):
        tar = written(tmp_path / f"{count}.tar", pack((f"cat/{n}.jpg", b"x") for n in range(count)))
        call = [sys.executable, "-c", code, tar, tmp_path / f"out{count}"]
        peaks.append(int(subprocess.check_output(call, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)))
    assert peaks[1] - peaks[0] < 500_000, peaks


def test_two_runs_at_once(tmp_path, train):
    """The second one waits for the first, then finds its work."""
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(unpack([train], tmp_path / "out", check_md5=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(result.reused for result in results) == [False, True]
    assert images(tmp_path / "out") == train_tree()
