"""The model: patches, vision transformer, masked autoencoder, forward passes; no training. Read mae.py first.

card.py (the description stored with the weights) and sizes.py (FLOP) do not need MindSpore.
"""

from mae.model.card import ModelCard

__all__ = ["ModelCard"]
