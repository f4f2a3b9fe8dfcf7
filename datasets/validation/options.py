"""What the result of a validation depends on, besides the files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple, Optional

from datasets.base.digests import value_digest
from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.imagenet import EXPECTED
from datasets.manifest.faults import DEFAULTS, Policy
from datasets.validation.copies import MOST_BITS

VERSION = 5  # raise it when the same file may get another row: all files are then examined again


class ValidationOptions(NamedTuple):
    """Options of a validation.

    `val_share` is the share of each class that is held out where there is no val/, `expect` a name of
    `datasets.imagenet.EXPECTED`, `near_duplicates` the largest number of bits in which the perceptual hashes of similar
    pictures differ (None: no search for them), `min_side` in pixels.
    """

    val_share: float = 0.1
    policy: Policy = DEFAULTS
    expect: Optional[str] = None
    near_duplicates: Optional[int] = None
    min_side: int = 16

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        bits = self.near_duplicates
        for name, value, right, expected in (
            ("val_share", self.val_share, 0 < self.val_share < 1, "a share above 0 and below 1"),
            ("expect", self.expect, self.expect in (None, *EXPECTED), " or ".join(EXPECTED)),
            ("min_side", self.min_side, self.min_side > 0, "at least 1 pixel"),
            ("near_duplicates", bits, bits is None or 0 <= bits <= MOST_BITS, f"0 to {MOST_BITS} bits"),
        ):
            if not right:
                raise InputError(name, expected=expected, found=str(value), todo="correct it")

    def request(self, root: PathLike, name: Optional[str] = None) -> dict[str, Any]:
        """Return everything that the validation of `root` depends on, besides the files. `name`: default of the folder.

        Raises:
            InputError: the root is missing, or an option is out of range.
        """
        self.check()
        if not Path(root).is_dir():
            found = "a file" if Path(root).exists() else "nothing there"
            raise InputError(root, expected="a folder of images", found=found, todo="correct the data root")
        root = Path(root).resolve()
        safe_name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name or root.name).strip("-.") or "images"
        values = {**self._asdict(), "policy": dict(self.policy)}
        return {"name": safe_name, "root": str(root), **values, "version": VERSION}

    def directory(self, workspace: PathLike, root: PathLike, *, name: Optional[str] = None) -> Path:
        """Return where the pipeline validates `root`. Root and options give the name, so a changed tree is updated."""
        request = self.request(root, name)
        return Path(workspace) / "datasets" / f"{request['name']}-{value_digest(request)}"
