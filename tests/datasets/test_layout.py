"""Folders to (split, class): every layout, and every fault of one."""

from __future__ import annotations

import os
from importlib import import_module
from typing import NamedTuple

import pytest

from datasets.base.errors import InputError
from datasets.layout import outside
from datasets.validation import ValidationPlan
from datasets.validation.options import ValidationOptions


class Entry(NamedTuple):
    path: str
    split: str
    class_name: str


def scan(root, *, val_share):
    """Every file as the units see it, sorted."""
    found = ValidationPlan.make(root, "out", options=ValidationOptions(val_share))
    parts = [part for unit in found.units for part in unit.classes]
    return sorted(Entry(path, split, name) for split, name, paths in parts for path in paths.split("\0"))


IMAGE = b"any bytes: a listing opens no file"

LAYOUTS = {  # name: (files, {path: (split, class)})
    "train_and_val": (
        {"train/cat/a.jpg": IMAGE, "train/cat/deep/b.jpg": IMAGE, "train/dog/a.jpg": IMAGE, "val/cat/a.jpg": IMAGE},
        {
            "train/cat/a.jpg": ("train", "cat"),
            "train/cat/deep/b.jpg": ("train", "cat"),
            "train/dog/a.jpg": ("train", "dog"),
            "val/cat/a.jpg": ("val", "cat"),
        },
    ),
    "other_folders_beside_the_splits": (
        {"train/cat/a.jpg": IMAGE, "val/cat/a.jpg": IMAGE, "test/b.jpg": IMAGE, "LICENSE": IMAGE},
        {"train/cat/a.jpg": ("train", "cat"), "val/cat/a.jpg": ("val", "cat")},
    ),
    "one_image_of_a_class": ({"cat/a.jpg": IMAGE}, {"cat/a.jpg": ("train", "cat")}),
    "train_as_a_class": (
        {"train/a.jpg": IMAGE, "plane/a.jpg": IMAGE},
        {"train/a.jpg": ("train", "train"), "plane/a.jpg": ("train", "plane")},
    ),
    "files_beside_class_folders": (
        {"cat/a.jpg": IMAGE, "stray.jpg": IMAGE, ".hidden/x.jpg": IMAGE},
        {"cat/a.jpg": ("train", "cat"), "stray.jpg": ("train", ""), ".hidden/x.jpg": ("train", "")},
    ),
    "hidden_files_of_a_flat_folder": (
        {"a.jpg": IMAGE, ".DS_Store": IMAGE},
        {"a.jpg": ("train", "unlabelled"), ".DS_Store": ("train", "")},
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layout(tmp_path, write_tree, case):
    files, expected = LAYOUTS[case]
    entries = scan(write_tree(tmp_path, files), val_share=0.1)
    assert {entry.path: (entry.split, entry.class_name) for entry in entries} == expected
    assert [entry.path for entry in entries] == sorted(expected)


@pytest.mark.parametrize(
    ("prefix", "sizes", "share", "held_out"),
    [
        ("", {"cat": 20, "dog": 2, "eel": 1}, 0.1, {"cat": 2, "dog": 1, "eel": 0}),
        ("", {"cat": 20, "dog": 2}, 0.5, {"cat": 10, "dog": 1}),
        ("", {"cat": 3}, 0.99, {"cat": 2}),  # train keeps one
        ("train/", {"cat": 20, "dog": 10}, 0.1, {"cat": 2, "dog": 1}),  # no val/ beside train/
    ],
    ids=["uneven_classes", "half", "nearly_all", "only_train"],
)
def test_hold_out(tmp_path, write_tree, prefix, sizes, share, held_out):
    files = {f"{prefix}{name}/{i}.jpg": IMAGE for name, size in sizes.items() for i in range(size)}
    entries = scan(write_tree(tmp_path / "a", files), val_share=share)
    assert {name: sum(e.class_name == name and e.split == "val" for e in entries) for name in sizes} == held_out
    again = scan(write_tree(tmp_path / "elsewhere" / "b", files), val_share=share)
    assert [(e.path, e.split) for e in again] == [(e.path, e.split) for e in entries]


@pytest.mark.parametrize("prefix", ["", "deep/"])
def test_a_large_folder_is_cut_and_nothing_else_changes(tmp_path, write_tree, monkeypatch, prefix):
    root = write_tree(tmp_path, {f"{prefix}{i}.jpg": IMAGE for i in range(25)})
    whole = scan(root, val_share=0.2)
    monkeypatch.setattr(import_module("datasets.validation.validate"), "UNIT_FILES", 8)
    found = ValidationPlan.make(root, tmp_path / "out", options=ValidationOptions(0.2))
    assert [unit.files for unit in found.units] == [8, 8, 8, 1]
    assert scan(root, val_share=0.2) == whole


def test_hold_out_of_a_flat_folder(tmp_path, write_tree):
    entries = scan(write_tree(tmp_path, {f"{i}.jpg": IMAGE for i in range(10)}), val_share=0.2)
    assert [e.class_name for e in entries] == ["unlabelled"] * 10
    assert [e.split for e in entries].count("val") == 2


@pytest.mark.parametrize(
    ("files", "root", "message"),
    [
        ({}, "missing", "missing: expected a folder of images, found nothing there"),
        ({"file": IMAGE}, "file", "found a file"),
        ({"empty": None}, "empty", "found no files"),
        ({"r/.DS_Store": IMAGE}, "r", "found no files"),
        ({"r/train": None, "r/val": None}, "r", "found no files"),
        ({"r/cat/a.jpg": IMAGE, "r/dog": None}, "r", "dog: expected images of this class, found an empty folder"),
        ({"r/cat/a.jpg": IMAGE, "r/dog/.DS_Store": IMAGE}, "r", "dog: expected images of this class"),
        ({"r/train/cat/a.jpg": IMAGE, "r/val/cat": None}, "r", "val/cat: expected images of this class"),
        (
            {"r/train/cat/a.jpg": IMAGE, "r/val/eel/a.jpg": IMAGE},
            "r",
            "expected the classes of train/, found 1 others, first 'eel'",
        ),
        ({"r/train/cat/a.jpg": IMAGE, "r/val/a.jpg": IMAGE}, "r", "sort the validation images into the class folders"),
    ],
    ids=[
        "missing_root",
        "root_is_a_file",
        "empty_root",
        "only_hidden_files",
        "empty_splits",
        "empty_class",
        "class_of_hidden_files",
        "empty_val_class",
        "val_class_not_in_train",
        "flat_val",
    ],
)
def test_faults(tmp_path, write_tree, files, root, message):
    write_tree(tmp_path, files)
    with pytest.raises(InputError) as error:
        scan(tmp_path / root, val_share=0.1)
    assert message in str(error.value)


def test_links(tmp_path, write_tree):
    """Linked files and folders count, a link to nothing stays visible, a loop ends."""
    root = write_tree(tmp_path, {"r/cat/a.jpg": IMAGE, "store/b.jpg": IMAGE}) / "r"
    os.symlink(tmp_path / "store", root / "dog")
    os.symlink(tmp_path / "store" / "b.jpg", root / "cat" / "linked.jpg")
    os.symlink(tmp_path / "gone", root / "cat" / "broken.jpg")
    os.symlink(root, root / "cat" / "loop")
    paths = {entry.path for entry in scan(root, val_share=0.1)}
    assert paths == {"cat/a.jpg", "cat/linked.jpg", "cat/broken.jpg", "dog/b.jpg"}


@pytest.mark.parametrize("folder", ["", "cat", "cat/deep"])
def test_unreadable_folder_is_not_passed_over(tmp_path, write_tree, monkeypatch, folder):
    """os.walk would skip it without a word. The refusal is faked: nothing is unreadable to root."""
    root = write_tree(tmp_path / "r", {"cat/a.jpg": IMAGE, "cat/deep/a.jpg": IMAGE})

    def refuse(call):
        def wrapped(path):
            if os.fspath(path) == str(root / folder):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path)

        return wrapped

    monkeypatch.setattr(os, "scandir", refuse(os.scandir))
    monkeypatch.setattr(os, "listdir", refuse(os.listdir))
    with pytest.raises(InputError, match="a readable folder, found Permission denied"):
        scan(root, val_share=0.1)


@pytest.mark.parametrize("share", [0, 1, -0.1, 5])
def test_share_out_of_range(tmp_path, write_tree, share):
    with pytest.raises(InputError, match="val_share: expected a share above 0 and below 1"):
        scan(write_tree(tmp_path, {"cat/a.jpg": IMAGE}), val_share=share)


def test_relative_root(tmp_path, write_tree, monkeypatch):
    write_tree(tmp_path, {"cat/a.jpg": IMAGE})
    monkeypatch.chdir(tmp_path)
    assert [entry.path for entry in scan(".", val_share=0.1)] == ["cat/a.jpg"]


def test_outside_names_what_is_no_part_of_the_data_set(tmp_path, write_tree):
    write_tree(
        tmp_path,
        {"r/train/cat/a": IMAGE, "r/val/cat/a": IMAGE, "r/test/a": IMAGE, "r/LICENSE": IMAGE, "s/cat/a": IMAGE},
    )
    assert outside(tmp_path / "r") == ["LICENSE", "test"]
    assert outside(tmp_path / "s") == []
