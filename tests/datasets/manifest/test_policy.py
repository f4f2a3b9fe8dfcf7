"""Every fault with every action, on real files."""

from __future__ import annotations

import io
import os

import pytest
from PIL import Image

from datasets import imagenet
from datasets.base.errors import InputError
from datasets.images.inspect import stored_bytes
from datasets.manifest.faults import DEFAULTS, FAULTS, conversions, outcome, parse_policy
from datasets.validation.options import ValidationOptions
from datasets.validation.validate import validate
from tests.datasets.conftest import KINDS, encode, picture, read_manifest


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(picture(77), "JPEG", exif=exif)


def ycck():
    data = bytearray(encode(picture(78).convert("CMYK"), "JPEG"))
    adobe = data.index(b"Adobe")
    data[adobe + 11] = 2  # the transform
    return bytes(data)


FILES = {  # fault: (name in train/cat, content)
    "empty": ("x.jpg", b""),
    "not_image": ("x.jpg", b"text"),
    "too_large": ("x.png", KINDS["bomb.png"](0)),
    "truncated": ("x.jpg", KINDS["truncated.jpg"](50)),
    "corrupt": ("x.png", KINDS["damaged.png"](51)),
    "unsupported": ("x.tiff", KINDS["float.tiff"](52)),
    "leak": ("x.jpg", KINDS["rgb.jpg"](1000)),
    "duplicate": ("x.jpg", KINDS["rgb.jpg"](0)),
    "near_duplicate": ("x.jpg", encode(picture(0), "JPEG", quality=60)),
    "cmyk": ("x.jpg", KINDS["cmyk.jpg"](53)),
    "ycck": ("x.jpg", ycck()),
    "sixteen_bit": ("x.png", KINDS["grey16.png"](54)),
    "palette": ("x.png", KINDS["palette.png"](55)),
    "alpha": ("x.png", KINDS["alpha.png"](56)),
    "colour_space": ("x.tiff", encode(picture(57).convert("LAB"), "TIFF")),
    "frames": ("x.gif", encode(picture(58), "GIF", save_all=True, append_images=[picture(59)])),
    "container": ("x.bmp", KINDS["picture.bmp"](60)),
    "orientation": ("x.jpg", turned()),
    "grey": ("x.jpg", KINDS["grey.jpg"](61)),
    "small": ("x.jpg", encode(picture(62, (40, 15)), "JPEG")),
    "wrong_extension": ("x.png", KINDS["rgb.jpg"](63)),
}
ACTIONS = [(fault, action) for fault in FILES for action in FAULTS[fault].actions]


def tree(root, write_tree, extra):
    files = {f"train/cat/{i}.jpg": ("rgb.jpg", i) for i in range(3)} | {"val/cat/0.jpg": ("rgb.jpg", 1000)}
    return write_tree(root, files | extra)


@pytest.mark.parametrize(("fault", "action"), ACTIONS)
def test_fault_and_action(tmp_path, write_tree, fault, action):
    name, content = FILES[fault]
    root = tree(tmp_path / "root", write_tree, {f"train/cat/{name}": content})
    others = [f"{other}=accept" for other in ("container", "grey", "palette") if "accept" in FAULTS[other].actions]
    options = ValidationOptions(policy=parse_policy([*others, f"{fault}={action}"]), near_duplicates=3)
    if action == "fail":
        with pytest.raises(InputError, match=f"1 {fault}; first train/cat/{name}: "):
            validate(root, tmp_path / "out", options=options)
        assert not (tmp_path / "out").exists()
        return
    result = validate(root, tmp_path / "out", options=options)
    row = {row.path: row for row in read_manifest(result.directory / "manifest.parquet")}[f"train/cat/{name}"]
    assert fault in row.faults.split(",")
    assert result.found[fault] == 1
    assert row.kept == (action != "exclude")
    assert result.train == 3 + row.kept
    if action == "exclude":
        assert row.status == fault
    if row.kept:
        wanted = conversions(row.faults.split(","), options.policy)
        assert (action == "convert") == (fault in wanted)
        stored = stored_bytes(content, short_side=None, convert=wanted)
        assert (stored == content) == (not wanted)
        assert Image.open(io.BytesIO(stored)).mode == "RGB" or not wanted


def test_an_image_to_be_turned_upright_is(image_bytes):
    stored = stored_bytes(turned(), short_side=None, convert={"orientation"})
    assert Image.open(io.BytesIO(stored)).size == (32, 48)
    assert Image.open(io.BytesIO(stored_bytes(turned(), short_side=None, convert=()))).size == (48, 32)


def test_an_unreadable_file(tmp_path, write_tree, monkeypatch):
    """A directory entry that cannot be opened; the refusal is an I/O error, as nothing is unreadable to root."""
    root = tree(tmp_path / "root", write_tree, {})
    os.symlink("/proc/self/mem", root / "train/cat/x.jpg")  # a regular file whose first byte cannot be read
    rows = {row.path: row for row in read_manifest(validate(root, tmp_path / "out").directory / "manifest.parquet")}
    assert rows["train/cat/x.jpg"].status == "unreadable"
    assert rows["train/cat/x.jpg"].reason == "Input/output error"
    with pytest.raises(InputError, match="1 unreadable; first train/cat/x"):
        validate(root, tmp_path / "out", options=ValidationOptions(policy=parse_policy(["unreadable=fail"])))


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is unreadable to root")
def test_a_file_without_permission(tmp_path, write_tree):
    root = tree(tmp_path / "root", write_tree, {})
    file = root / "train/cat/0.jpg"
    file.chmod(0)
    first = validate(root, tmp_path / "out")
    assert (first.faults, first.train) == ({"unreadable": 1}, 2)
    file.chmod(0o644)
    assert validate(root, tmp_path / "out").train == 3


CLASSES = {  # name: (more files, settings, what is found, classes that are left; or the error)
    "few": ({}, [], {"few_images": 4}, ["cat"]),
    "few_fails": ({}, ["few_images=fail"], "10 usable training images or more", None),
    "train_only": ({"train/dog/0.jpg": "rgb.jpg"}, [], {"one_split": 1, "few_images": 5}, ["cat", "dog"]),
    "train_only_excluded": (
        {"train/dog/0.jpg": "rgb.jpg"},
        ["one_split=exclude"],
        {"one_split": 1, "few_images": 5},
        ["cat"],
    ),
    "train_only_fails": ({"train/dog/0.jpg": "rgb.jpg"}, ["one_split=fail"], "class 'dog'", None),
    "val_only": ({"val/eel/0.jpg": "rgb.jpg"}, [], "the classes of train/", None),
    "val_only_excluded": (
        {"val/eel/0.jpg": "rgb.jpg"},
        ["one_split=exclude"],
        {"one_split": 1, "few_images": 4},
        ["cat"],
    ),
    "empty": ({"train/dog/0.jpg": b"", "val/dog/0.jpg": "rgb.jpg"}, [], "usable training image of class 'dog'", None),
    "empty_excluded": (
        {"train/dog/0.jpg": b"", "val/dog/0.jpg": "rgb.jpg"},
        ["empty_class=exclude"],
        {"empty": 1, "empty_class": 2, "few_images": 4},
        ["cat"],
    ),
    "empty_folder": ({"train/dog": None}, [], "an empty folder", None),
    "empty_folder_excluded": ({"train/dog": None}, ["empty_class=exclude"], {"few_images": 4}, ["cat"]),
}


@pytest.mark.parametrize("case", CLASSES)
def test_classes(tmp_path, write_tree, case):
    more, settings, found, classes = CLASSES[case]
    root = tree(tmp_path / "root", write_tree, more)
    options = ValidationOptions(policy=parse_policy(settings))
    if isinstance(found, str):
        with pytest.raises(InputError) as error:
            validate(root, tmp_path / "out", options=options)
        assert found in str(error.value)
        return
    result = validate(root, tmp_path / "out", options=options)
    assert result.classes == classes
    assert result.found == found
    rows = read_manifest(result.directory / "manifest.parquet")
    assert {row.class_name for row in rows if row.kept} == set(classes)
    assert all(row.label == (0 if row.class_name == "cat" else -1) for row in rows if len(classes) == 1)


def test_expected_data_set(tmp_path, write_tree):
    known = sorted(imagenet.synsets())[:2]
    files = {f"{split}/{name}/{i}.jpg": "rgb.jpg" for split in ("train", "val") for name in known for i in range(2)}
    root = write_tree(tmp_path / "root", files)
    accept = parse_policy(["wrong_count=accept"])
    assert validate(root, tmp_path / "out", options=ValidationOptions(expect="imagenet-1k", policy=accept)).train == 4
    with pytest.raises(InputError, match="1,281,167 train, 50,000 val, 1,000 classes, found 4 train, 4 val, 2 classes"):
        validate(root, tmp_path / "out", options=ValidationOptions(expect="imagenet-1k"))
    write_tree(root, {"train/n99999999/0.jpg": "rgb.jpg"})
    with pytest.raises(InputError, match="classes of imagenet-1k, found class 'n99999999'"):
        validate(root, tmp_path / "out", options=ValidationOptions(expect="imagenet-1k", policy=accept))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ValidationOptions(expect="imagenet-2k"), "imagenet-1k, found imagenet-2k"),
        (ValidationOptions(near_duplicates=9), "0 to 8 bits, found 9"),
        (ValidationOptions(min_side=0), "at least 1 pixel"),
    ],
)
def test_options_out_of_range(tmp_path, small_tree, options, message):
    with pytest.raises(InputError, match=message):
        validate(small_tree(tmp_path / "root"), tmp_path / "out", options=options)


@pytest.mark.parametrize("setting", ["grey", "purple=fail", "grey=ignore", "truncated=accept", "="])
def test_settings_that_make_no_sense(setting):
    with pytest.raises(InputError, match="policy: expected"):
        parse_policy([setting])


def test_the_weightiest_fault_gives_the_status():
    assert outcome(["grey", "truncated", "no_class"]) == ("truncated", False)
    assert outcome(["cmyk", "duplicate"]) == ("duplicate", True)
    assert outcome(["cmyk", "grey"]) == ("converted", True)
    assert outcome(["grey"]) == outcome([]) == ("ok", True)
    assert set(DEFAULTS) == set(FAULTS)
