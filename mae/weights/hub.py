"""Published weights by name: downloaded once, checked, converted, then read from the cache.

$MAE_HOME (default ~/.cache/maeflow)
    <name>/model.safetensors, source.json    converted weights; where they come from and their digests
    downloads/<file>                         what is being downloaded, or what a user without internet puts there
$MAE_MIRROR                                  takes the place of PUBLISHER in the addresses
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional

from datasets.base.digests import file_digest
from datasets.base.errors import InputError
from datasets.base.files import write_json
from datasets.base.lock import exclusive
from mae.config.sections import ModelConfig
from mae.weights.download import NETWORK_ERRORS, download

PUBLISHER = "https://dl.fbaipublicfiles.com/mae"
LICENCE = "CC BY-NC 4.0, which allows no commercial use (facebookresearch/mae)"
MODEL, SOURCE = "model.safetensors", "source.json"

logger = logging.getLogger(__name__)


class Published(NamedTuple):
    """A file of weights and what is in it."""

    file: str  # below the publisher's or the mirror's address
    kind: Literal["mae", "encoder", "classifier"]
    model: ModelConfig
    md5: Optional[str] = None  # first digits, where the publisher states them

    @property
    def address(self) -> str:
        """Where it is downloaded from."""
        return f"{_publisher()}/{self.file}"


def _published() -> dict[str, Published]:
    """All names.

    Sources, all of facebookresearch/mae: README and FINETUNE.md for encoders, classifiers and their digests; issue 8
    for the `full` files, whose models reconstruct normalised pixels; issue 3 for `visualize`, which show plain ones.
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


def known(name: str) -> Published:
    """What is published under a name.

    Raises:
        InputError: nothing is.
    """
    if name in KNOWN:
        return KNOWN[name]
    near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.8)
    todo = f"did you mean {near[0]}?" if near else "correct the name or the path"
    raise InputError(name, expected=f"a path, or one of {', '.join(KNOWN)}", found="neither", todo=todo)


def home() -> Path:
    """The cache's folder."""
    return Path(os.environ.get("MAE_HOME") or "~/.cache/maeflow").expanduser()


def fetch(name: str) -> Path:
    """The model file of a known name, from the cache or else from its publisher.

    Safe where several processes ask at once. The cached file is compared with its recorded SHA-256 on every call.

    Raises:
        InputError: the name is unknown, the file cannot be downloaded, or it is not what was published.
    """
    published = known(name)
    folder = home() / name
    with exclusive(folder):
        fault = _fault(folder)
        if fault is not None:
            if (folder / MODEL).exists():
                logger.warning("%s: made again: %s", folder / MODEL, fault)
            _make(published, folder)
    return folder / MODEL


def _fault(folder: Path) -> str | None:
    """Why the cached model cannot be used; none if it can."""
    try:
        recorded = json.loads((folder / SOURCE).read_text())["model_sha256"]
        if file_digest(folder / MODEL) != recorded:
            return "it has other content than was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _make(published: Published, folder: Path) -> None:
    """Download unless the file is there already, check, convert; what was downloaded is not kept after that."""
    from mae.weights.convert import convert

    file = home() / "downloads" / Path(published.file).name
    put_there = file.is_file()
    if not put_there:
        _download(published, file)
    try:
        facts = _checked(published, file)
        partial = folder / f"partial-{MODEL}"
        convert(file, partial, settings=_settings(published))
        partial.replace(folder / MODEL)
        write_json(folder / SOURCE, {**facts, "model_sha256": file_digest(folder / MODEL)})
    except InputError:
        if not put_there:
            file.unlink(missing_ok=True)
        raise
    if not put_there:
        file.unlink()


def _settings(published: Published) -> dict[str, Any]:
    """What the weights themselves do not tell."""
    names = ["num_heads", "decoder_num_heads", "norm_pix_loss"] if published.kind == "mae" else ["num_heads"]
    return {name: getattr(published.model, name) for name in names}


def _download(published: Published, file: Path) -> None:
    address = published.address
    logger.warning("downloading %s; its licence is %s", address, LICENCE)
    try:
        download(address, file)
    except NETWORK_ERRORS as error:
        raise InputError(
            address,
            expected="the file",
            found=str(error) or type(error).__name__,
            todo=f"call again to continue, set MAE_MIRROR to a server that has it under /{published.file}, or fetch "
            f"{PUBLISHER}/{published.file} on a machine with internet and put it at {file}",
        ) from None


def _checked(published: Published, file: Path) -> dict[str, Any]:
    """Where the file comes from and its digests.

    Raises:
        InputError: it is not the published one.
    """
    with file.open("rb") as content:
        md5 = hashlib.md5(usedforsecurity=False)
        for block in iter(lambda: content.read(1 << 20), b""):
            md5.update(block)
    if published.md5 is not None and not md5.hexdigest().startswith(published.md5):
        raise InputError(
            file,
            expected=f"MD5 {published.md5}... as published",
            found=f"MD5 {md5.hexdigest()}",
            todo=f"fetch it again from {published.address}",
        )
    return {
        "address": published.address,
        "licence": LICENCE,
        "md5": md5.hexdigest(),
        "sha256": file_digest(file),
        "bytes": file.stat().st_size,
    }


def _publisher() -> str:
    mirror = os.environ.get("MAE_MIRROR", "").rstrip("/")
    if mirror and not mirror.startswith(("https://", "http://")):
        todo = f"set the address that stands for {PUBLISHER}, or unset it"
        raise InputError("MAE_MIRROR", expected="an http(s) address", found=repr(mirror), todo=todo)
    return mirror or PUBLISHER
