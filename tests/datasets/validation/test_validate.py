"""Validation of whole trees: every file its row, every fault its behaviour."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading

import pyarrow.parquet as pq
import pytest

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.validation.options import ValidationOptions
from datasets.validation.validate import load_validation, validate
from tests.datasets.conftest import read_manifest

COLUMNS = ["path", "split", "class_name", "label", "bytes", "width", "height", "mode", "format", "digest", "checksum"]
COLUMNS += ["status", "reason", "faults", "kept"]

BAD_TREE = {  # path: (content, expected status)
    "train/cat/0.jpg": ("rgb.jpg", "ok"),
    "train/cat/1.jpg": ("grey.jpg", "ok"),
    "train/cat/alpha.png": ("alpha.png", "converted"),
    "train/cat/cmyk.JPEG": ("cmyk.jpg", "converted"),
    "train/cat/grey16.png": ("grey16.png", "converted"),
    "train/cat/palette.png": ("palette.png", "converted"),
    "train/cat/truncated.jpg": ("truncated.jpg", "truncated"),
    "train/cat/text.jpg": ("text.jpg", "not_image"),
    "train/cat/empty.jpg": ("empty.jpg", "empty"),
    "train/cat/bomb.png": ("bomb.png", "too_large"),
    "train/cat/float.tiff": ("float.tiff", "unsupported"),
    "train/cat/.DS_Store": (b"\0\0\0\1Bud1", "not_image"),
    "train/cat/Thumbs.db": (b"\xd0\xcf\x11\xe0", "not_image"),
    "train/cat/notes.txt": (b"", "empty"),
    "train/cat/._0.jpg": ("rgb.jpg", "not_image"),
    "train/cat/again.jpg": (("rgb.jpg", 100), "ok"),
    "train/cat/again2.jpg": (("rgb.jpg", 100), "duplicate"),
    "train/dog/again.jpg": (("rgb.jpg", 100), "duplicate"),
    "train/dog/seen.jpg": (("rgb.jpg", 200), "leak"),
    "train/dog/seen_odd.gif": (("picture.gif", 200), "leak"),
    "train/dog/png.JPEG": ("rgb.png", "ok"),
    "train/stray.jpg": ("rgb.jpg", "no_class"),
    "train/stray.txt": (b"text", "not_image"),
    "val/cat/seen.jpg": (("rgb.jpg", 200), "ok"),
    "val/dog/seen_odd.gif": (("picture.gif", 200), "converted"),
    "val/dog/twice.gif": (("picture.gif", 200), "duplicate"),
}
KEPT = ("ok", "converted", "duplicate")


@pytest.fixture(scope="module")
def bad(tmp_path_factory, write_tree):
    """The tree above, validated."""
    root = write_tree(
        tmp_path_factory.mktemp("bad") / "my pets", {path: content for path, (content, _) in BAD_TREE.items()}
    )
    return validate(root, root.parent / "out")


def test_every_file_has_its_row(bad):
    rows = {row.path: row for row in read_manifest(bad.directory / "manifest.parquet")}
    assert {path: row.status for path, row in rows.items()} == {path: status for path, (_, status) in BAD_TREE.items()}
    assert all(row.reason for row in rows.values() if row.status != "ok")
    assert rows["train/dog/again.jpg"].reason == "same bytes as train/cat/again.jpg, which is of another class"
    assert rows["train/dog/seen.jpg"].reason == "same bytes as val/cat/seen.jpg, which is of another class"
    assert rows["train/dog/png.JPEG"].reason == "the name says JPEG, the bytes say PNG"


def test_manifest_columns(bad):
    assert pq.read_schema(bad.directory / "manifest.parquet").names == COLUMNS
    rows = {row.path: row for row in read_manifest(bad.directory / "manifest.parquet")}
    for path, row in rows.items():
        file = bad.root / path
        assert row.bytes == file.stat().st_size
        assert row.split == path.split("/")[0]
        assert row.label == {"cat": 0, "dog": 1, "": -1}[row.class_name]
        if row.status in KEPT:
            assert row.digest == file_digest(file)
            assert (row.width, row.height) == (48, 32)
    assert list(rows) == sorted(rows, key=lambda path: (rows[path].split, rows[path].class_name, path))


def test_totals(bad):
    summary = json.loads((bad.directory / "validation.json").read_text())
    expected = {}
    for _, status in BAD_TREE.values():
        if status != "ok":
            expected[status] = expected.get(status, 0) + 1
    kept = [path for path, (_, status) in BAD_TREE.items() if status in KEPT]
    assert bad.faults == summary["faults"] == expected
    assert bad.train == sum(path.startswith("train") for path in kept)
    assert bad.val == sum(path.startswith("val") for path in kept)
    assert {row["path"] for row in summary["excluded"]} == set(BAD_TREE) - set(kept)
    assert all(row["status"] and row["reason"] for row in summary["excluded"])
    assert bad.classes == ["cat", "dog"]
    assert bad.name == "my-pets"
    assert not bad.reused


def test_exclusions_are_logged(tmp_path, write_tree, caplog):
    root = write_tree(tmp_path / "r", {"cat/0.jpg": "rgb.jpg", "cat/1.jpg": "grey.jpg", "cat/2.jpg": "truncated.jpg"})
    validate(root, tmp_path / "out")
    assert "1 files are truncated (excluded)" in caplog.text
    assert "excluded cat/2.jpg: truncated" in caplog.text


def test_same_tree_gives_same_manifest(bad, tmp_path):
    """Byte for byte: at another place, at another time, with other worker counts."""
    for workers in (1, 3):
        shutil.copytree(bad.root, tmp_path / f"copy{workers}", copy_function=shutil.copyfile)
        validate(tmp_path / f"copy{workers}", tmp_path / f"out{workers}", workers=workers)
        assert (tmp_path / f"out{workers}/manifest.parquet").read_bytes() == (
            bad.directory / "manifest.parquet"
        ).read_bytes()


FAULTS = {  # name: (files, parts of the message)
    "all_corrupt": (
        {
            "train/cat/0.jpg": "rgb.jpg",
            "train/dog/0.jpg": "truncated.jpg",
            "train/dog/1.jpg": "empty.jpg",
            "val/cat/0.jpg": "grey.jpg",
        },
        ["training image of class 'dog'", "2 faulty files", "train/dog/0.jpg: truncated"],
    ),
    "all_leaked": (
        {"train/cat/0.jpg": ("rgb.jpg", 7), "val/cat/0.jpg": ("rgb.jpg", 7)},
        ["training image of class 'cat'", "leak"],
    ),
    "nothing_to_hold_out": ({"cat/0.jpg": "rgb.jpg"}, ["a usable validation image", "at least two images"]),
    "val_all_faulty": (
        {"train/cat/0.jpg": "rgb.jpg", "val/cat/0.jpg": "truncated.jpg"},
        ["a usable validation image"],
    ),
    "empty_class": ({"cat/0.jpg": "rgb.jpg", "dog": None}, ["dog", "an empty folder"]),
    "no_images": (
        {"readme/a.txt": b"text", "readme/b.txt": b"more"},
        ["training image of class 'readme'", "not_image"],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_leave_no_output_but_the_work(tmp_path, write_tree, case):
    """So that, where something can be repaired, only that is examined again."""
    files, parts = FAULTS[case]
    root = write_tree(tmp_path / "root", files)
    with pytest.raises(InputError) as error:
        validate(root, tmp_path / "out")
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert not (tmp_path / "out").exists()
    work = [path for path in tmp_path.iterdir() if path.name != "root"]
    assert [re.sub("[0-9a-f]{12}$", "", path.name) for path in work] == (
        [] if case == "empty_class" else ["out.partial-"]
    )
    assert all(path.suffix == ".parquet" for directory in work for path in (directory / "parts").iterdir())


def test_missing_root(tmp_path):
    with pytest.raises(InputError, match="a folder of images"):
        validate(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="a folder of images"):
        ValidationOptions().directory(tmp_path, tmp_path / "nowhere")


def test_second_run_reuses(tmp_path, small_tree):
    root = small_tree(tmp_path / "root")
    first = validate(root, tmp_path / "out")
    written = (tmp_path / "out/manifest.parquet").stat().st_mtime_ns
    second = validate(root, tmp_path / "out")
    assert second == first.model_copy(update={"reused": True, "examined": 0})
    assert first.examined == 11
    assert (tmp_path / "out/manifest.parquet").stat().st_mtime_ns == written


CHANGES = {  # name: (change of (root, out), files that are examined again)
    "new_file": (lambda root, _: shutil.copy(root / "val/dog/0.jpg", root / "train/cat/new.jpg"), 1),
    "removed_file": (lambda root, _: (root / "train/cat/0.jpg").unlink(), 0),
    "touched_file": (lambda root, _: os.utime(root / "train/cat/0.jpg", ns=(1, 1)), 1),
    "renamed_file": (lambda root, _: (root / "train/cat/0.jpg").rename(root / "train/cat/9.jpg"), 1),
    "replaced_file": (lambda root, _: _replace(root / "train/cat/0.jpg"), 1),
    "new_class": (lambda root, _: shutil.copytree(root / "train/cat", root / "train/eel"), 4),
    "removed_class": (lambda root, _: [shutil.rmtree(root / split / "dog") for split in ("train", "val")], 0),
    "manifest_changed": (lambda _, out: _append(out / "manifest.parquet"), 0),
    "manifest_removed": (lambda _, out: (out / "manifest.parquet").unlink(), 0),
    "summary_damaged": (lambda _, out: (out / "validation.json").write_text("{"), 0),
    "table_damaged": (lambda _, out: _append(next((out / "parts").iterdir()), cut=30), 11),
    "table_removed": (lambda _, out: next((out / "parts").iterdir()).unlink(), 11),
    "table_of_a_larger_data_set": (lambda _, out: shutil.copy(next((out / "parts").iterdir()), out / "parts/7"), 0),
}


def _append(path, cut=0):
    data = path.read_bytes()
    path.unlink()  # it may be a hard link
    path.write_bytes(data[: len(data) - cut] + b"\0")


def _replace(path):
    """By another file of the same size and mtime: only the inode tells."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-3] + b"\0\xff\xd9")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize("case", CHANGES)
def test_change_is_seen_and_nothing_else_is_examined(tmp_path, small_tree, caplog, case):
    change, examined = CHANGES[case]
    root, out = small_tree(tmp_path / "root"), tmp_path / "out"
    validate(root, out)
    before = ValidationOptions().directory(tmp_path, root)
    change(root, out)
    assert ValidationOptions().directory(tmp_path, root) == before
    again = validate(root, out)
    assert (again.reused, again.examined) == (False, examined)
    assert "validating again" in caplog.text
    assert validate(root, out).reused
    assert validate(root, tmp_path / "undisturbed").manifest_digest == again.manifest_digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root", "undisturbed"]


def test_full_reads_every_file_again(tmp_path, small_tree):
    """Also one whose change left no trace in size, mtime and inode."""
    root, out = small_tree(tmp_path / "root"), tmp_path / "out"
    first, file = validate(root, out), root / "train/cat/0.jpg"
    status = file.stat()
    with open(file, "r+b") as opened:
        opened.seek(-3, os.SEEK_END)
        opened.write(b"\0")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert validate(root, out).examined == 0
    again = validate(root, out, full=True)
    assert (again.reused, again.examined) == (False, 11)
    assert again.manifest_digest != first.manifest_digest
    assert validate(root, out).reused


def test_options_are_part_of_the_name(tmp_path, small_tree):
    root = small_tree(tmp_path / "root")
    names = {
        ValidationOptions().directory(tmp_path, root).name,
        ValidationOptions(val_share=0.2).directory(tmp_path, root).name,
        ValidationOptions().directory(tmp_path, root, name="other").name,
    }
    assert len(names) == 3
    assert all(name.startswith(("root-", "other-")) for name in names)
    assert ValidationOptions().directory(tmp_path, root).parent == tmp_path / "datasets"


def test_foreign_output_is_kept(tmp_path, small_tree):
    root = small_tree(tmp_path / "root")
    precious = tmp_path / "home" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(InputError, match="which would be lost"):
        validate(root, precious.parent)
    assert precious.read_text() == "years of work"


def test_load_validation_without_one(tmp_path):
    with pytest.raises(InputError, match=r"no readable validation\.json; run `mae data validate` first"):
        load_validation(tmp_path)


def test_unreadable_files(tmp_path, write_tree):
    """A pipe, a link to nothing and a name that is not UTF-8 get rows; none of them hangs or crashes."""
    root = write_tree(tmp_path / "r", {f"cat/{i}.jpg": "rgb.jpg" for i in range(4)})
    os.mkfifo(root / "cat/pipe.jpg")
    os.symlink("gone", root / "cat/broken.jpg")
    (root / os.fsdecode(b"cat/\xff.jpg")).write_bytes((root / "cat/0.jpg").read_bytes())
    validate(root, tmp_path / "out")
    rows = {row.path: (row.status, row.reason) for row in read_manifest(tmp_path / "out/manifest.parquet")}
    assert rows["cat/pipe.jpg"] == ("unreadable", "no regular file")
    assert rows["cat/broken.jpg"] == ("unreadable", "No such file or directory")
    assert rows["cat/\\xff.jpg"] == ("unreadable", "the file name is not UTF-8")


def test_runs_in_a_thread(tmp_path, small_tree):
    """As it does inside an orchestrator's task."""
    results = []
    thread = threading.Thread(target=lambda: results.append(validate(small_tree(tmp_path / "root"), tmp_path / "out")))
    thread.start()
    thread.join(30)
    assert [(result.train, result.val) for result in results] == [(7, 4)]
