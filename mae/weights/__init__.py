"""Weights of other projects, and published weights by name. Read convert.py first, then architecture.py.

restore.py makes MindSpore models of checkpoints. Importing this room does not load MindSpore.
"""

from mae.weights.convert import Converted, convert, read
from mae.weights.hub import KNOWN, find_weights

__all__ = ["KNOWN", "Converted", "convert", "find_weights", "read"]
