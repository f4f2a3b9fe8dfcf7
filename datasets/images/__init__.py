"""Images: from the bytes of a file to its pixels, and what can be wrong with them. Read inspect.py first."""

from datasets.images.inspect import MAX_BYTES, MAX_PIXELS, inspect, to_rgb
from datasets.images.view import centre_view, decode

__all__ = ["MAX_BYTES", "MAX_PIXELS", "centre_view", "decode", "inspect", "to_rgb"]
