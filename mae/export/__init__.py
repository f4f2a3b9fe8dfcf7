"""Exports checkpoints to MindIR and ONNX files that are checked against the model. Read verified.py first.

Importing this room does not load MindSpore.
"""

from mae.export.verified import Exported, export

__all__ = ["Exported", "export"]
