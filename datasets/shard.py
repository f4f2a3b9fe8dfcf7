"""Write a validated data set as MindRecord shards: what a rank reads during training.

A record is `image` (the encoded file, bytes), `label` (int32) and `row` (int32, row number in the copy of
manifest.parquet beside index.json). Each shard is a MindRecord file of its own, not part of a set, so that any subset
opens.

Writing happens in the calling process. Importing MindSpore (3 s, on the first shard only) sets LD_LIBRARY_PATH,
HCCL_CONNECT_TIMEOUT, KMP_DUPLICATE_LIB_OK and PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION in os.environ and adds warning
filters; it starts no thread and takes no signal handler. The writer itself keeps no state beyond its call.
"""

from __future__ import annotations

import logging
import math
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets.image import stored_bytes
from datasets.manifest import MANIFEST, USABLE, ManifestRow, read_manifest
from datasets.records import BATCH, INDEX, Index, Options, Records, Shard, Split, damaged_files, load_index, read_source
from datasets.stage import InputError, PathLike, atomic_directory, file_digest, refuse_foreign, value_digest, write_json
from datasets.validate import Validation, load_validation

logger = logging.getLogger(__name__)

VERSION = 1  # raise it when the same validation may give other records: finished outputs are then rewritten
SCHEMA = {"image": {"type": "bytes"}, "label": {"type": "int32"}, "row": {"type": "int32"}}


def records_directory(
    workspace: PathLike, validation_directory: PathLike, *, shard_mb: int, short_side: int | None, seed: int
) -> Path:
    """Where the pipeline shards a validated data set: named by its manifest and by the options."""
    source = load_validation(validation_directory)
    options = _options(shard_mb, short_side, seed)
    return (
        Path(workspace)
        / "records"
        / f"{source.name}-{value_digest([source.manifest_digest, options.model_dump(), VERSION])}"
    )


def shard(
    validation_directory: PathLike,
    out: PathLike,
    *,
    shard_mb: int = 1024,
    short_side: int | None = None,
    seed: int = 0,
) -> Records:
    """Write the usable rows of a manifest to out/train/*.mindrecord and out/val/*.mindrecord, with index.json.

    Each split is shuffled as a whole by `seed` and cut into shards of at most about `shard_mb` million bytes of source
    images, so that every shard is a fair sample. `datasets.image.stored_bytes` says what is stored of an image.
    A finished `out` of the same manifest and options is reused if all its files have their digests; if one is damaged,
    all are written again.

    Raises:
        InputError: the validation is missing or damaged, a source file is gone or changed since it, an option is out
            of range, or `out` holds something else.
    """
    out = Path(out)
    source = load_validation(validation_directory)
    options = _options(shard_mb, short_side, seed)
    refuse_foreign(out, INDEX)
    fault = _fault(out, source, options)
    if fault is None:
        logger.info("%s: reusing the records of %s", out, source.root)
        return load_index(out).result(out, reused=True)
    if out.exists():
        logger.warning("%s: writing the records again: %s", out, fault)
    rows = read_manifest(source.directory / MANIFEST)
    with atomic_directory(out) as partial:
        shutil.copyfile(source.directory / MANIFEST, partial / MANIFEST)
        splits = {split: _write_split(partial, split, rows, source.root, options) for split in ("train", "val")}
        index = Index(
            name=source.name,
            classes=source.classes,
            splits=splits,
            record_schema=SCHEMA,
            root=source.root,
            manifest_digest=source.manifest_digest,
            options=options,
            version=VERSION,
        )
        write_json(partial / INDEX, index.model_dump(mode="json", by_alias=True))
    result = index.result(out, reused=False)
    logger.info("%s: wrote %d + %d records in %d shards", out, result.train, result.val, result.shards)
    return result


def _options(shard_mb: int, short_side: int | None, seed: int) -> Options:
    for name, value in (("shard_mb", shard_mb), ("short_side", short_side)):
        if value is not None and value < 1:
            raise InputError(name, expected="at least 1", found=str(value), todo="correct the option")
    return Options(shard_mb=shard_mb, short_side=short_side, seed=seed)


def _fault(out: Path, source: Validation, options: Options) -> str | None:
    """Why `out` cannot be reused; none if it can."""
    try:
        index = load_index(out)
    except InputError as error:
        return str(error)
    if (index.manifest_digest, index.options, index.version) != (source.manifest_digest, options, VERSION):
        return "it was made from another manifest or with other options"
    return next((f"{name}: {why}" for name, why in damaged_files(out, index)), None)


def _write_split(directory: Path, split: str, rows: list[ManifestRow], root: Path, options: Options) -> Split:
    order = [number for number, row in enumerate(rows) if row.split == split and row.status in USABLE]
    random.Random(f"{options.seed} {split}").shuffle(order)
    total = sum(rows[number].bytes for number in order)
    count = min(len(order), -(-total // (options.shard_mb * 1_000_000)))
    (directory / split).mkdir()
    shards = []
    for part in range(count):
        numbers = order[part * len(order) // count : (part + 1) * len(order) // count]
        file = f"{split}/{split}-{part:05d}-of-{count:05d}.mindrecord"
        shards.append(_write_shard(directory, file, numbers, rows, root, options.short_side))
    return Split(images=len(order), shards=shards)


def _write_shard(
    directory: Path, file: str, numbers: list[int], rows: list[ManifestRow], root: Path, short_side: int | None
) -> Shard:
    """Write the given manifest rows to one MindRecord file, in that order."""
    from mindspore.mindrecord import FileWriter  # slow to import, and not needed where records are reused

    def image(number: int) -> bytes:
        return stored_bytes(read_source(root, rows[number]), short_side=short_side)

    page, header = _page_and_header([_limit(rows[number], short_side) for number in numbers])
    writer = FileWriter(str(directory / file), shard_num=1)
    writer.set_page_size(page)
    writer.set_header_size(header)
    writer.add_schema(SCHEMA, "images")
    writer.add_index(["label", "row"])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(numbers), BATCH):
            batch = numbers[start : start + BATCH]
            records = [{"image": i, "label": rows[n].label, "row": n} for i, n in zip(pool.map(image, batch), batch)]
            writer.write_raw_data(records)
            if len(records) != len(batch):  # the writer removes what does not fit its schema, with a log line only
                raise RuntimeError(f"{file}: MindRecord refused {len(batch) - len(records)} of {len(batch)} records")
    writer.commit()
    return Shard(
        file=file,
        images=len(numbers),
        bytes=(directory / file).stat().st_size,
        digest=file_digest(directory / file),
        database_digest=file_digest(directory / f"{file}.db"),
    )


def _limit(row: ManifestRow, short_side: int | None) -> int:
    """Bytes that the stored image will not exceed.

    JPEG of quality 95 needs below 2 bytes a pixel even for noise (measured: 1.5); it pads sides to multiples of 16.
    """
    width, height = row.width or 0, row.height or 0
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    converted = int(2 * (width * scale + 16) * (height * scale + 16)) + 4096
    if scale < 1:
        return converted
    return row.bytes if row.status == "ok" else max(row.bytes, converted)


def _page_and_header(limits: list[int]) -> tuple[int, int]:
    """Page and header size in bytes of a MindRecord file that holds images of at most these sizes.

    An image lies within one page, so a page ends with half an image's room to spare and the file with up to a page:
    waste = page + total / page * mean / 2, smallest at page = sqrt(total * mean / 2). For ImageNet in shards of 1 GB
    that is 8 MB and 1.5 %. The header is written in full and describes each page in about 300 bytes.
    MindRecord's defaults, pages of 32 MB and a header of 16 MB, cost 50 MB a file.
    """
    total = sum(limits)
    best = math.isqrt(total * total // (2 * len(limits)))
    page = _power_of_two(max(1 << 15, max(limits) + 1024, min(best, 1 << 28)))  # 32 KiB to 256 MiB
    fields = 64 * len(limits)  # what a record needs besides its image, in pages of their own
    pages = 2 * total // page + fields // page + 4  # images just above half a page fill every page by half
    return page, _power_of_two(max(1 << 16, 512 * pages))


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
