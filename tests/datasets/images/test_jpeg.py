"""The strict decode of JPEGs, compared with Pillow: Pillow decodes every file that is found whole."""

from __future__ import annotations

import functools
import io
import random

import numpy as np
import pytest
from PIL import Image

from datasets.images.inspect import inspect, inspect_with_pillow, quick_inspect
from datasets.images.jpeg import StrictDecode, strict_decode
from datasets.manifest.faults import outcome
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


@functools.cache
def noisy(size, mode):
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.blend(picture(3, size), Image.fromarray(noise), 0.3).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("saved", SAVED)
def test_whole_images(saved, size, mode):
    data = encode(noisy(size, mode), "JPEG", **SAVED[saved])
    assert strict_decode(data) == StrictDecode("")
    assert strict_decode(data + b"bytes after the end") == StrictDecode("")
    found = quick_inspect(data)
    assert found == inspect_with_pillow(data)
    assert (found.width, found.height, found.mode) == (*size, mode)


@pytest.mark.parametrize("kind", ["cmyk.jpg", "progressive.jpg", "rgb.jpg", "grey.jpg"])
def test_whole_jpegs_of_every_kind_need_no_pillow(image_bytes, kind):
    for looks in (False, True):
        found, expected = (ask(image_bytes(kind), looks=looks) for ask in (quick_inspect, inspect_with_pillow))
        assert found._replace(look=None) == expected._replace(look=None)
        assert (found.look is None) == (not looks)


@pytest.mark.parametrize("kind", ["truncated.jpg", "no_end.jpg", "head_only.jpg", "rgb.png", "large.png"])
def test_other_images_need_pillow(image_bytes, kind):
    assert quick_inspect(image_bytes(kind)) is None


@pytest.mark.parametrize("kind", ["rgb.png", "text.jpg", "head_only.jpg", "empty.jpg"])
def test_what_is_no_jpeg_has_a_problem_without_lost_data(image_bytes, kind):
    found = strict_decode(image_bytes(kind))
    assert found.problem
    assert not found.lost_data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation(orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F], exif[0x0112] = "a camera", orientation
    data = encode(picture(1), "JPEG", exif=exif)
    found = quick_inspect(data)
    assert found is not None
    assert found.faults == (() if orientation == 1 else ("orientation",))
    assert found.reason == ("" if orientation == 1 else f"EXIF orientation {orientation}")


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
    """300 damaged files of each kind. Some that Pillow decodes to the end are found damaged as well."""
    refused = more = 0
    for seed in range(300):
        chance = random.Random(f"{damage} {seed}")
        saved = SAVED[chance.choice(list(SAVED))]
        data = DAMAGE[damage](encode(noisy((64, 48), chance.choice(["RGB", "L"])), "JPEG", **saved), chance)
        found = set(inspect(data).faults)
        try:
            Image.open(io.BytesIO(data)).load()
        except Exception:
            refused += 1
            assert found & REFUSED, seed
        else:
            more += bool(found & {"corrupt", "extraneous"})
    assert refused + more > 20, (refused, more)


def test_flipped_bits():
    """Damage is found in a quarter of the files: most flipped bits only change the colour of some blocks."""
    data = encode(noisy((500, 375), "RGB"), "JPEG", quality=90)
    start, found = data.rindex(b"\xff\xda") + 14, 0
    for seed in range(200):
        bit = random.Random(seed).randrange(start * 8, len(data) * 8 - 16)
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        decoded = strict_decode(bytes(flipped))
        found += decoded.lost_data or decoded.extraneous
    assert found >= 50, found


def test_damage_that_pillow_does_not_report():
    """Pillow decodes these without a warning and invents a part of the picture."""
    data = encode(noisy((200, 200), "RGB"), "JPEG", quality=90)
    progressive = encode(noisy((200, 200), "RGB"), "JPEG", quality=90, progressive=True)
    restarts = encode(noisy((64, 64), "RGB"), "JPEG", restart_marker_blocks=2)
    for name, changed, reason in (
        ("half of the data", data[: len(data) // 2] + b"\xff\xd9", "premature end of data segment"),
        ("last scan is missing", progressive[: progressive.rindex(b"\xff\xda") + 40] + b"\xff\xd9", "premature end"),
        ("another restart marker", restarts.replace(b"\xff\xd1", b"\xff\xd5"), "found marker 0xd5 instead of RST1"),
        ("no restart marker", restarts.replace(b"\xff\xd1", b""), "found marker 0xd2 instead of RST1"),
    ):
        Image.open(io.BytesIO(changed)).load()
        assert inspect(changed).faults == ("corrupt",), name
        assert reason in inspect(changed).reason, name


def test_extraneous_bytes_are_a_fault_of_their_own_and_do_not_hide_damage():
    data = encode(picture(1), "JPEG")
    found = inspect(data[:-2] + bytes(range(100)) + data[-2:])
    assert (found.faults, found.reason) == (("extraneous",), "extraneous bytes before a JPEG marker")
    assert outcome(found.faults) == ("ok", True)
    restarts = encode(noisy((64, 64), "RGB"), "JPEG", restart_marker_blocks=2)
    first = restarts.index(b"\xff\xd0")
    harmless = restarts[:first] + bytes(40) + restarts[first:]
    assert inspect(harmless).faults == ("extraneous",)
    third = harmless.index(b"\xff\xd2")
    assert inspect(harmless[: third - 20] + harmless[third:]).faults == ("corrupt",)


def test_the_search_for_extraneous_bytes_ends():
    """20,000 restart markers in a file whose first interval has extraneous bytes."""
    data = encode(noisy((64, 64), "RGB"), "JPEG", restart_marker_blocks=1)
    first = data.index(b"\xff\xd0")
    data = data[:first] + bytes(5) + data[first:-2] + b"\xff\xd0" * 20_000 + b"\xff\xd9"
    assert inspect(data).faults == ("corrupt",)
