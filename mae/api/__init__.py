"""The Python interface, which `from mae import ...` gives. Read auto.py first, then trainer.py.

Importing this room loads MindSpore. `mae/__init__.py` therefore imports it at the first use of one of these names.
"""

from mae.api.auto import AutoConfig, AutoModel
from mae.api.image_pipeline import pipeline
from mae.api.trainer import Trainer
from mae.prediction import load_image

__all__ = ["AutoConfig", "AutoModel", "Trainer", "load_image", "pipeline"]
