"""The walk through a JPEG against Pillow's decoder: what one calls whole, the other decodes."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from datasets.images import jpeg
from datasets.images.inspect import inspect
from tests.datasets.conftest import encode, picture

SAVED = {  # name: how Pillow saves it
    "halved_colour": {"quality": 90},
    "full_colour": {"quality": 97, "subsampling": 0},
    "narrow_colour": {"quality": 75, "subsampling": 1},
    "own_codes": {"quality": 85, "optimize": True},
    "restarts": {"quality": 90, "restart_marker_blocks": 3},
    "row_restarts": {"quality": 90, "restart_marker_rows": 1},
    "worst": {"quality": 1},
    "best": {"quality": 100, "subsampling": 0},
}
SIZES = [(1, 1), (8, 8), (17, 9), (48, 32), (33, 100)]


def noisy(size, mode):
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.blend(picture(3, size), Image.fromarray(noise), 0.3).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("saved", SAVED)
def test_whole_images(saved, size, mode):
    data = encode(noisy(size, mode), "JPEG", **SAVED[saved])
    assert jpeg.walk(data) == jpeg.Walk(*size, len(mode), 1, "", False)
    assert jpeg.walk(data + b"what follows the end") == jpeg.walk(data)


@pytest.mark.parametrize("kind", ["cmyk.jpg", "progressive.jpg", "rgb.png", "text.jpg", "head_only.jpg", "empty.jpg"])
def test_nothing_is_said_of_other_files(image_bytes, kind):
    assert jpeg.walk(image_bytes(kind)) is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation(orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F], exif[0x0112] = "a camera", orientation
    data = encode(picture(1), "JPEG", exif=exif)
    found = jpeg.walk(data)
    assert found is not None
    assert found.orientation == orientation == Image.open(io.BytesIO(data)).getexif()[0x0112]
    assert inspect(data).faults == (() if orientation == 1 else ("orientation",))


REFUSED = {"truncated", "corrupt", "not_image", "empty", "too_large"}
DAMAGE = {  # name: change of (data, random numbers)
    "cut": lambda data, chance: data[: chance.randrange(3, len(data))],
    "cut_and_ended": lambda data, chance: data[: chance.randrange(3, len(data))] + b"\xff\xd9",
    "changed_byte": lambda data, chance: change(data, chance, 1),
    "changed_bytes": lambda data, chance: change(data, chance, 20),
    "zeroed": lambda data, chance: overwrite(data, chance, bytes(64)),
    "overwritten": lambda data, chance: overwrite(data, chance, chance.randbytes(64)),
    "removed": lambda data, chance: remove(data, chance, 1),
    "removed_many": lambda data, chance: remove(data, chance, 100),
    "inserted": lambda data, chance: overwrite(data, chance, chance.randbytes(3), 0),
}


def change(data, chance, count):
    changed = bytearray(data)
    for _ in range(count):
        changed[chance.randrange(2, len(data))] = chance.randrange(256)
    return bytes(changed)


def overwrite(data, chance, content, length=64):
    start = chance.randrange(2, len(data))
    return data[:start] + content + data[start + length :]


def remove(data, chance, count):
    start = chance.randrange(2, len(data))
    return data[:start] + data[start + count :]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", DAMAGE)
def test_everything_that_pillow_finds_is_found(damage):
    """900 damaged files of each kind; of those that Pillow decodes to the end, some are found damaged all the same."""
    refused = more = 0
    for seed in range(900):
        chance = random.Random(f"{damage} {seed}")
        saved = SAVED[chance.choice(list(SAVED))]
        data = DAMAGE[damage](encode(noisy((64, 48), chance.choice(["RGB", "L"])), "JPEG", **saved), chance)
        try:
            Image.open(io.BytesIO(data)).load()
        except Exception:
            refused += 1
            assert not {"truncated", "corrupt", "not_image", "empty", "too_large"}.isdisjoint(inspect(data).faults), (
                seed
            )
        else:
            more += "corrupt" in inspect(data).faults
    assert refused + more > 100


def test_damage_that_decoders_paper_over(image_bytes):
    """Pillow decodes these without a word; a part of the picture is made up."""
    data = encode(noisy((200, 200), "RGB"), "JPEG", quality=90)
    for name, changed, reason in (
        ("half of the data", data[: len(data) // 2] + b"\xff\xd9", "too early"),
        ("codes of ones", data[:-3000] + b"\xff\0" * 500 + data[-2000:], "do not exist"),
    ):
        Image.open(io.BytesIO(changed)).load()
        assert inspect(changed).faults == ("corrupt",), name
        assert reason in inspect(changed).reason


def test_extraneous_bytes_are_a_warning_and_do_not_hide_damage():
    data = encode(picture(1), "JPEG")
    assert inspect(data[:-2] + b"\x12\x34\x56" + data[-2:]).warnings == ("JPEG: extraneous bytes before a marker",)
    assert inspect(data[:-2] + b"\x12\x34\x56" + data[-2:]).faults == ()
    restarts = encode(noisy((64, 64), "RGB"), "JPEG", restart_marker_blocks=2)
    first = restarts.index(b"\xff\xd0")
    harmless = restarts[:first] + b"\x12\x34" + restarts[first:]
    assert (inspect(harmless).faults, len(inspect(harmless).warnings)) == ((), 1)
    third = harmless.index(b"\xff\xd2")
    assert inspect(harmless[: third - 20] + harmless[third:]).faults == ("corrupt",)
