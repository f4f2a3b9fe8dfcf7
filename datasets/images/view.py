"""An image as the published evaluation sees it: decoded, resized and cropped by the rules of torchvision's transforms.

Pillow does the work for records and for single files alike. MindSpore's Resize with PILCUBIC differs from it in some
sizes, by up to 24 of 255, and its CenterCrop rounds odd margins down where the published evaluation rounds to even.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.base.errors import InputError
from datasets.base.files import PathLike
from datasets.images.inspect import to_rgb


def decode(content: PathLike | bytes, *, where: object) -> Image.Image:
    """An image file, or its bytes, as RGB without regard to its EXIF orientation, as torchvision's loader does.

    Files of 16 bits are scaled to 8, as they are stored in records; the loader would clip them to white.

    Raises:
        InputError: `where` cannot be read or is no image.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
            return to_rgb(file)
    except FileNotFoundError:
        raise InputError(where, expected="an image", found="no such file", todo="correct the path") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        # the text of UnidentifiedImageError holds a memory address
        found = "no image format" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
        todo = "remove it from the call, or repair the file"
        raise InputError(where, expected="an image", found=found, todo=todo) from None


def centre_view(image: Image.Image, image_shape: tuple[int, int], crop_pct: float) -> np.ndarray:
    """Resize by Pillow's bicubic and keep the centre: uint8 (H, W, 3) of `image_shape`.

    The shorter side becomes int(side / crop_pct) (224 / 0.875 = 256), the longer one is rounded down. A model of
    non-square images has no published evaluation; both sides are resized, so that it sees the whole picture.
    """
    height, width = image_shape
    wanted = int(height / crop_pct), int(width / crop_pct)
    if height == width:
        shorter = min(image.size)
        wanted = int(wanted[0] * image.height / shorter), int(wanted[1] * image.width / shorter)
    image = image.resize(wanted[::-1], Image.Resampling.BICUBIC)
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))
