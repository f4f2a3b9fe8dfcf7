"""Speed of the training input pipeline (read, decode, random crop bicubic, flip, batch) beside its peers.

    python -m tests.benchmarks.bench_input [DIRECTORY]

2,048 different photos of 500 x 375 and 110 KB, batches of 64 at 224 x 224 as uint8, as many workers as cores, warm file
cache. Each case runs in a process of its own, the cases in turn for ROUNDS rounds. Prints, per case, the median and the
range of images per second of wall-clock time, the images per second of processor time (of all its processes; start-up
and compilation left out), and both beside torch's. DIRECTORY keeps the photos for another run. Not a test: no number is
checked.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

IMAGES, BATCH, SIDE, WARM, ROUNDS = 2048, 64, 224, 8, 5
CORES = len(os.sched_getaffinity(0))
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def ours(folder: Path) -> Iterator[Any]:
    """datasets.batches.batches.train_batches."""
    from datasets.batches import train_batches

    return train_batches(
        folder / "records",
        image_shape=(SIDE, SIDE),
        batch_size=BATCH,
        crop_scale=0.2,
        seed=0,
        epochs=[0],
        workers=CORES,
    )


def ours_pillow_resize(folder: Path) -> Iterator[Any]:
    """The same with Pillow's own crop and resize."""
    from PIL import Image

    import datasets.augmentation.crop

    def resized_crop(pixels: np.ndarray, box: tuple[int, int, int, int], out: np.ndarray, *, flip: bool) -> None:
        height, width, _ = pixels.shape
        image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)
        image = image.crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        array = np.asarray(image)[..., :3]
        out[:] = array[:, ::-1] if flip else array

    datasets.augmentation.crop.resized_crop = resized_crop
    return ours(folder)


def mindspore_operators(folder: Path) -> Iterator[Any]:
    """MindDataset with MindSpore's RandomCropDecodeResize (PILCUBIC), which decodes the crop only."""
    from mindspore.dataset import vision

    crop = vision.RandomCropDecodeResize((SIDE, SIDE), SCALE, RATIO, vision.Inter.PILCUBIC)
    return _mapped(folder, [crop, vision.RandomHorizontalFlip()])


def mindspore_python_map(folder: Path) -> Iterator[Any]:
    """MindDataset with a Python function (simplejpeg, Pillow) mapped in threads."""
    import simplejpeg
    from PIL import Image

    def view(content: np.ndarray) -> np.ndarray:
        return _view(Image.fromarray(simplejpeg.decode_jpeg(content.tobytes())))

    return _mapped(folder, [view])


def mindspore_python_processes(folder: Path) -> Iterator[Any]:
    """The same in processes."""
    import simplejpeg
    from PIL import Image

    def view(content: np.ndarray) -> np.ndarray:
        return _view(Image.fromarray(simplejpeg.decode_jpeg(content.tobytes())))

    return _mapped(folder, [view], python_multiprocessing=True)


def torch_pillow(folder: Path) -> Iterator[Any]:
    """torch's DataLoader on the files, Pillow's decoder, torchvision's rules for crop and flip."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    torch.set_num_threads(1)

    class Photos(Dataset):
        files = sorted((folder / "images/train").rglob("*.jpg"))

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
            with open(self.files[number], "rb") as file:
                image = Image.open(file).convert("RGB")
            return torch.from_numpy(_view(image)), int(self.files[number].parent.name[-1])

    return iter(DataLoader(Photos(), BATCH, shuffle=True, num_workers=CORES, drop_last=True))


def mindrecord_only(folder: Path) -> Iterator[Any]:
    """Reading the records in the epoch's order, without decoding."""
    import itertools

    from datasets.batches.batches import _records, epoch_order

    records = _records(folder / "records", "train", epoch_order(IMAGES, seed=0, epoch=0))
    return (list(itertools.islice(records, BATCH)) for _ in range(IMAGES // BATCH))


def bare_decode(folder: Path) -> Iterator[Any]:
    """libjpeg-turbo alone: simplejpeg.decode_jpeg of bytes in memory, in as many threads as cores."""
    from concurrent.futures import ThreadPoolExecutor

    import simplejpeg

    files = sorted((folder / "images/train").rglob("*.jpg"))
    contents = [file.read_bytes() for file in files]

    def decode(start: int) -> None:
        for content in contents[start : start + BATCH]:
            simplejpeg.decode_jpeg(content)

    with ThreadPoolExecutor(CORES) as pool:
        yield from pool.map(decode, range(0, IMAGES, BATCH))


def _mapped(folder: Path, transforms: list[Callable], **options: object) -> Iterator[Any]:
    import mindspore.dataset as ds

    files = sorted(str(file) for file in (folder / "records/train").glob("*.mindrecord"))
    order = np.random.default_rng(0).permutation(IMAGES).tolist()
    data = ds.MindDataset(files, ["image", "label"], 2, sampler=ds.SubsetSampler(order))
    data = data.map(transforms, "image", num_parallel_workers=CORES, **options).batch(BATCH)
    return data.create_tuple_iterator(num_epochs=1, output_numpy=True)


def _view(image: Any) -> np.ndarray:
    """RandomResizedCrop and RandomHorizontalFlip of torchvision, written out."""
    from PIL import Image

    image = image.crop(_box(*image.size)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def _box(width: int, height: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * random.uniform(*SCALE)
        ratio = np.exp(random.uniform(*np.log(RATIO)))
        wide, tall = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < tall <= height:
            left, top = random.randint(0, width - wide), random.randint(0, height - tall)
            return left, top, left + wide, top + tall
    raise ValueError("photos of 4:3 always have a fitting box in ten tries")


CASES = {
    case.__name__: case
    for case in (
        ours,
        torch_pillow,
        ours_pillow_resize,
        mindspore_operators,
        mindspore_python_map,
        mindspore_python_processes,
        mindrecord_only,
        bare_decode,
    )
}


def _used() -> float:
    """Processor seconds of this process and its children so far."""
    import psutil

    children = [c.cpu_times() for c in psutil.Process().children(recursive=True)]
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + sum(times.user + times.system for times in children)


def measure(name: str, folder: Path) -> None:
    """Print images per second of wall-clock time and of processor time."""
    batches = CASES[name](folder)
    for _ in range(WARM):
        next(batches)
    started, used = time.perf_counter(), _used()
    for _ in range(IMAGES // BATCH - WARM - 1):
        next(batches)
    images = (IMAGES // BATCH - WARM - 1) * BATCH
    print("rates", images / (time.perf_counter() - started), images / (_used() - used), flush=True)
    os._exit(0)  # whatever still runs ahead


def prepare(folder: Path) -> None:
    """Photos and their records."""
    if (folder / "records").exists():
        return
    from datasets.sharding import write_records
    from datasets.validation.validate import validate
    from tests.benchmarks.photos import photos

    for number, file in enumerate(photos(folder / "made", IMAGES + 2, seed=0)):
        split = "train" if number < IMAGES else "val"
        target = folder / "images" / split / f"class{number % 2}" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    write_records(validate(folder / "images", folder / "valid").directory, folder / "records", shard_mb=64)


def main(folder: Path) -> None:
    """Run the cases in turn and print a line each."""
    prepare(folder)
    sizes = [file.stat().st_size for file in (folder / "images").rglob("*.jpg")]
    print(f"{len(sizes)} photos of {np.mean(sizes) / 1000:.1f} KB, {CORES} cores, median [least, most] of {ROUNDS}")
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name in CASES:
            command = [sys.executable, "-m", "tests.benchmarks.bench_input", str(folder), name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(tuple(map(float, output.split("rates")[1].split()[:2])))
    base = [median(rates) for rates in zip(*found["torch_pillow"], strict=True)]
    for name, rates in found.items():
        wall, cpu = ([*column] for column in zip(*rates, strict=True))
        spread = f"[{min(wall):5.0f}, {max(wall):5.0f}]"
        print(
            f"{name:28s} {median(wall):6.0f} images/s {spread}  x {median(wall) / base[0]:.2f}"
            f"   per processor second {median(cpu):6.0f}  x {median(cpu) / base[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[2], Path(sys.argv[1]))
    elif len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
