"""Finds published weights by name. They are downloaded once, checked, converted and then read from the cache.

$MAE_HOME (default ~/.cache/maeflow)
    <name>/model.safetensors, source.json    the converted weights; their source and digests
    downloads/<file>                         a file that a user without internet put there
$MAE_MIRROR                                  address of a server to use instead of PUBLISHER
"""

from __future__ import annotations

import difflib
import json
import logging
import os
from pathlib import Path
from typing import Literal, NamedTuple, Optional

from datasets.base.digests import file_md5
from datasets.base.errors import InputError
from datasets.base.files import PathLike, write_json
from datasets.base.lock import exclusive
from mae.config.sections import ModelConfig
from mae.runs.checkpoint import digest_once
from mae.runs.model_file import model_file
from mae.weights.convert import convert
from mae.weights.download import NETWORK_ERRORS, download

PUBLISHER = "https://dl.fbaipublicfiles.com/mae"
LICENCE = "CC BY-NC 4.0, which allows no commercial use (facebookresearch/mae)"
MODEL, SOURCE = "model.safetensors", "source.json"

logger = logging.getLogger(__name__)


class Published(NamedTuple):
    """A published file of weights and the model in it."""

    file: str  # path below the publisher's or the mirror's address
    kind: Literal["mae", "encoder", "classifier"]
    model: ModelConfig
    md5: Optional[str] = None  # first digits, if the publisher states them

    @property
    def address(self) -> str:
        """The address that the file is downloaded from."""
        return f"{_publisher()}/{self.file}"


def _published() -> dict[str, Published]:
    """Return all published files by name.

    Sources, all in the repository facebookresearch/mae: README and FINETUNE.md for encoders, classifiers and their
    digests; its issue 8 for the `full` files, which predict normalised pixels; its issue 3 for the `visualize` files,
    which predict plain pixels.
    """
    sizes = {
        "base_p16": ModelConfig(),
        "large_p16": ModelConfig(embed_dim=1024, depth=24, num_heads=16),
        "huge_p14": ModelConfig(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
    }
    encoder_md5 = {"base_p16": "8cad7c", "large_p16": "b8b06e", "huge_p14": "9bdbb0"}
    classifier_md5 = {"base_p16": "1b25e9", "large_p16": "51f550", "huge_p14": "2541f2"}
    found: dict[str, Published] = {}
    for size, model in sizes.items():
        vit, name = f"vit_{size.split('_')[0]}", f"mae_vit_{size}"
        plain = model.model_copy(update={"norm_pix_loss": False})
        classifier = model.model_copy(update={"num_classes": 1000})
        found[name] = Published(f"pretrain/mae_pretrain_{vit}_full.pth", "mae", model)
        found[f"{name}_visualize"] = Published(f"visualize/mae_visualize_{vit}.pth", "mae", plain)
        found[f"{name}_encoder"] = Published(f"pretrain/mae_pretrain_{vit}.pth", "encoder", model, encoder_md5[size])
        found[f"{name}_finetuned"] = Published(
            f"finetune/mae_finetuned_{vit}.pth", "classifier", classifier, classifier_md5[size]
        )
    return found


KNOWN = _published()


def find_weights(name_or_path: PathLike) -> Path:
    """Return the model file of a published name, which is downloaded at its first use, or of a path.

    Raises:
        InputError: it is neither a published name nor the path of a model.
    """
    return fetch(str(name_or_path)) if is_name(name_or_path) else model_file(Path(name_or_path))


def is_name(name_or_path: PathLike) -> bool:
    """Return whether this can only be a name: it has no slash and no suffix, and no such file or folder exists."""
    text = str(name_or_path)
    return "/" not in text and not Path(text).suffix and not Path(text).exists()


def known(name: str) -> Published:
    """Return the published file of a name.

    Raises:
        InputError: there is none.
    """
    if name in KNOWN:
        return KNOWN[name]
    near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.8)
    todo = f"did you mean {near[0]}?" if near else "correct the name or the path"
    raise InputError(name, expected=f"a path, or one of {', '.join(KNOWN)}", found="neither", todo=todo)


def home() -> Path:
    """Return the folder of the cache."""
    return Path(os.environ.get("MAE_HOME") or "~/.cache/maeflow").expanduser()


def fetch(name: str) -> Path:
    """Return the model file of a published name, from the cache or else from its publisher.

    Several processes may call this at the same time. The cached file is compared with its recorded SHA-256.

    Raises:
        InputError: the name is unknown, the file cannot be downloaded, or it is not the published one.
    """
    published = known(name)
    folder = home() / name
    with exclusive(folder):
        fault = _fault(folder)
        if fault is not None:
            if (folder / MODEL).exists():
                logger.warning("%s: converting it again: %s", folder / MODEL, fault)
            _make(published, folder)
    return folder / MODEL


def _fault(folder: Path) -> str | None:
    """Return why the cached model cannot be used; none if it can."""
    try:
        recorded = json.loads((folder / SOURCE).read_text())["model_sha256"]
        if digest_once(folder / MODEL) != recorded:
            return "its content has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _make(published: Published, folder: Path) -> None:
    """Convert the file that the user put into downloads/, or else a downloaded one, which is deleted afterwards.

    Raises:
        InputError: the file cannot be downloaded, or is not the published one.
    """
    file = given = home() / "downloads" / Path(published.file).name
    downloaded = folder / given.name
    if not given.is_file():
        file = downloaded
        logger.warning("downloading %s; its licence is %s", published.address, LICENCE)
        try:
            download(published.address, file)
        except NETWORK_ERRORS as error:
            given.parent.mkdir(parents=True, exist_ok=True)
            todo = (
                f"call again, set MAE_MIRROR to a server that has it under /{published.file}, or fetch "
                f"{PUBLISHER}/{published.file} on a machine with internet and put it at {given}"
            )
            found = str(error) or type(error).__name__
            raise InputError(published.address, expected="the file", found=found, todo=todo) from None
    try:
        md5 = file_md5(file)
        if published.md5 is not None and not md5.startswith(published.md5):
            expected, todo = f"MD5 {published.md5}... as published", f"fetch it again from {published.address}"
            raise InputError(file, expected=expected, found=f"MD5 {md5}", todo=todo)
        facts = {"address": published.address, "licence": LICENCE, "md5": md5, "sha256": digest_once(file)}
        partial = folder / f"partial-{MODEL}"
        decoder = ["decoder_num_heads", "norm_pix_loss"] if published.kind == "mae" else []
        convert(file, partial, settings={name: getattr(published.model, name) for name in ["num_heads", *decoder]})
        partial.replace(folder / MODEL)
        write_json(folder / SOURCE, {**facts, "model_sha256": digest_once(folder / MODEL)})
    finally:
        downloaded.unlink(missing_ok=True)


def _publisher() -> str:
    mirror = os.environ.get("MAE_MIRROR", "").rstrip("/")
    if mirror and not mirror.startswith(("https://", "http://")):
        todo = f"set it to the address of a copy of {PUBLISHER}, or unset it"
        raise InputError("MAE_MIRROR", expected="an http(s) address", found=repr(mirror), todo=todo)
    return mirror or PUBLISHER
