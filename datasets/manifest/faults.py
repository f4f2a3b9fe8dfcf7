"""What can be wrong with a file, a class or a data set, and what becomes of it.

    fail     the validation ends with an error that names the first files
    exclude  the image is no part of the records
    convert  it is stored as RGB JPEG (see `datasets.images.inspect.stored_bytes`)
    accept   it is stored as it is; the manifest says what was found

Not every action fits every fault: what does not decode cannot be stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from datasets.base.errors import InputError

ACTIONS = ("fail", "exclude", "convert", "accept")
Policy = Mapping[str, str]  # fault: action, for every fault


class Fault(NamedTuple):
    """`actions` can be chosen, the first of them is the default; `meaning` completes "a file that ..."."""

    actions: tuple[str, ...]
    meaning: str


_NEVER = ("exclude", "fail")
_ODD = ("convert", "exclude", "fail")
_USABLE = ("accept", "exclude", "fail")
_ANY = ("accept", "convert", "exclude", "fail")

# In the order of weight: of several faults that exclude a file, the first gives its status.
FAULTS = {
    "unreadable": Fault(_NEVER, "cannot be read: permission, I/O error, broken link, no regular file, name not UTF-8"),
    "empty": Fault(_NEVER, "has no bytes"),
    "not_image": Fault(_NEVER, "is no image by its first bytes, or is hidden"),
    "too_large": Fault(_NEVER, "has more pixels or bytes than are safe to decode; it is not decoded"),
    "truncated": Fault(_NEVER, "ends before its image does"),
    "corrupt": Fault(_NEVER, "announces an image and does not decode to one"),
    "unsupported": Fault(_NEVER, "decodes to values without a meaning as RGB"),
    "no_class": Fault(_NEVER, "is next to the class folders"),
    "leak": Fault(("exclude", "accept", "fail"), "is for training and has the bytes of a validation file"),
    "duplicate": Fault(_USABLE, "has the bytes of an earlier file of its split"),
    "near_duplicate": Fault(_USABLE, "looks like an earlier file"),
    "cmyk": Fault(_ODD, "is a CMYK JPEG"),
    "ycck": Fault(_ODD, "is a YCCK JPEG"),
    "sixteen_bit": Fault(_ODD, "has 16 bits a channel"),
    "palette": Fault(_ODD, "has a palette, or one bit a pixel"),
    "alpha": Fault(_ODD, "has an alpha channel or a transparent colour"),
    "colour_space": Fault(_ODD, "has another colour space than grey and RGB"),
    "frames": Fault(_ODD, "has several frames, of which the first is kept"),
    "container": Fault(_ODD, "is neither JPEG nor PNG"),
    "orientation": Fault(_ANY, "has an EXIF orientation; where converted, its pixels are turned upright"),
    "grey": Fault(_ANY, "is grey"),
    "small": Fault(_USABLE, "has a side shorter than --min-side"),
    "extraneous": Fault(_USABLE, "has bytes between the parts of a JPEG, which decoders skip; it may be damaged"),
    "wrong_extension": Fault(_USABLE, "has a name that says another format"),
    "empty_class": Fault(("fail", "exclude"), "is of a class without a usable training image"),
    "unknown_synset": Fault(("fail", "exclude", "accept"), "is of a class that the expected data set does not have"),
    "one_split": Fault(("accept", "exclude", "fail"), "is of a class that only train/ or only val/ has"),
    "few_images": Fault(("accept", "fail"), "is of a class with fewer than 10 usable training images"),
    "wrong_count": Fault(("fail", "accept"), "is of a data set with other counts than the expected one"),
}
DEFAULTS: Policy = {name: fault.actions[0] for name, fault in FAULTS.items()}
_NAMED_IF_ACCEPTED = ("leak", "duplicate", "near_duplicate")


class Outcome(NamedTuple):
    """What becomes of a file: its `status` (ok, converted, or the fault that decided), and whether it is kept."""

    status: str
    kept: bool


def parse_policy(settings: Iterable[str]) -> Policy:
    """The defaults, changed by settings such as "grey=exclude".

    Raises:
        InputError: a setting names no fault, or an action that does not fit it.
    """
    policy = dict(DEFAULTS)
    for setting in settings:
        fault, equals, action = setting.partition("=")
        if not equals or fault not in FAULTS:
            expected = "fault=action with a fault of " + ", ".join(FAULTS)
            raise InputError("policy", expected=expected, found=repr(setting), todo="correct it")
        if action not in FAULTS[fault].actions:
            expected = f"{fault}= one of {', '.join(FAULTS[fault].actions)}"
            raise InputError("policy", expected=expected, found=repr(action), todo="correct it")
        policy[fault] = action
    return policy


def outcome(faults: Iterable[str], policy: Policy = DEFAULTS) -> Outcome:
    """What becomes of a file with these faults."""
    found = set(faults)
    for name in FAULTS:
        if name in found and policy[name] in ("fail", "exclude"):
            return Outcome(name, kept=False)
    for name in _NAMED_IF_ACCEPTED:
        if name in found:
            return Outcome(name, kept=True)
    return Outcome("converted" if conversions(found, policy) else "ok", kept=True)


def fault_names(text: str) -> frozenset[str]:
    """The faults in a manifest's column `faults`."""
    return frozenset(filter(None, text.split(",")))


def conversions(faults: Iterable[str], policy: Policy = DEFAULTS) -> frozenset[str]:
    """Those faults for which the file is stored as RGB JPEG; none: it is stored as it is."""
    return frozenset(fault for fault in faults if policy[fault] == "convert")
