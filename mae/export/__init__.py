"""Exports checkpoints to MindIR and ONNX files that are checked against the model. Read verified.py first."""

from mae.export.verified import Exported, export

__all__ = ["Exported", "export"]
