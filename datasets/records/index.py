"""A records directory: train/*.mindrecord, val/*.mindrecord and index.json, which names every file and its digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

from pydantic import BaseModel, ConfigDict, Field

from datasets.base.digests import value_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike, StageResult
from datasets.manifest.rows import MANIFEST

INDEX = "index.json"
DATABASE = ".db"  # MindRecord appends this to a shard's name for its SQLite file
SOURCES = ".sources.parquet"  # appended to a shard's name for the table of its records' source images
SCHEMA = {"image": {"type": "bytes"}, "label": {"type": "int32"}}
REDO = "run `mae data shard` again"


class Records(StageResult):
    """A sharded data set.

    `digest` covers the classes, the manifest and the content of the shards. `train` and `val` count records.
    """

    directory: Path
    digest: str
    train: int
    val: int
    classes: list[str]
    shards: int


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Part):
    """One MindRecord file, its SQLite file `<file>.db` and the table of its records' sources."""

    model_config = ConfigDict(extra="ignore")  # earlier versions wrote a `key`

    file: str  # relative to the records directory
    images: int
    bytes: int
    digest: str  # XXH3-128, as the next two, by `datasets.base.digests.file_checksum`
    database_digest: str
    sources_digest: str

    def digests(self) -> dict[str, str]:
        """Return the digest of each of the shard's files, by its path relative to the records directory."""
        return {
            self.file: self.digest,
            self.file + DATABASE: self.database_digest,
            self.file + SOURCES: self.sources_digest,
        }


class Split(_Part):
    """The shards of train or val."""

    images: int
    shards: list[Shard]


class RecordOptions(_Part):
    """What the records depend on besides the manifest."""

    shard_mb: int = Field(gt=0)  # million bytes of source images in a shard
    short_side: Optional[int] = Field(gt=0)  # pixels; larger images are stored with this shorter side
    seed: int  # of the order of the records
    convert: list[str]  # faults for which the validation's policy stores an image as RGB JPEG


class Index(_Part):
    """index.json. Record i of a shard comes from row i of `<file>.sources.parquet`, whose paths are below `root`."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    classes: list[str]
    splits: dict[str, Split]
    record_schema: dict[str, dict[str, str]] = Field(alias="schema")
    root: Path
    manifest_digest: str
    options: RecordOptions
    version: int

    def all_shards(self) -> list[Shard]:
        """Return the shards of train, then of val."""
        return [shard for split in ("train", "val") for shard in self.splits[split].shards]

    def digests(self) -> dict[str, str]:
        """Return the digest of every file of the records except index.json, by its relative path."""
        return {MANIFEST: self.manifest_digest} | {f: d for s in self.all_shards() for f, d in s.digests().items()}

    def result(self, directory: Path, *, reused: bool) -> Records:
        """Return the stage's result for the records in `directory`."""
        shards = self.all_shards()
        return Records(
            directory=directory,
            digest=value_digest([self.classes, self.manifest_digest, [(s.file, s.digest) for s in shards]]),
            train=self.splits["train"].images,
            val=self.splits["val"].images,
            classes=self.classes,
            shards=len(shards),
            reused=reused,
        )


def load_index(directory: PathLike) -> Index:
    """Read index.json of a records directory, and none of the files that it names (see `check_files`).

    Raises:
        InputError: it is missing or damaged.
    """
    path = Path(directory) / INDEX
    try:
        return Index.model_validate(json.loads(path.read_text()))
    except OSError:
        found = "no such file"
    except ValueError as error:
        found = f"damaged content ({str(error).splitlines()[0]})"
    raise InputError(path, expected="the index of a records directory", found=found, todo=REDO)


def check_labelled(directory: PathLike, *, classes: int, val: int) -> None:
    """Check that accuracy can be measured on data with `classes` classes and `val` validation images.

    Raises:
        InputError: there are fewer than two classes, or no validation image.
    """
    if classes < 2 or val == 0:
        found = f"{classes} classes and {val} validation images"
        expected, todo = "at least 2 classes and 1 validation image", "use images in class folders"
        raise InputError(directory, expected=expected, found=found, todo=todo)
