"""Validation: one verdict per file of a data set. Read validate.py first.

unit.py examines files one by one. whole.py and copies.py find what only all of them show, and make the manifest.
"""

from datasets.validation.options import ValidationOptions
from datasets.validation.unit import ValidationUnit
from datasets.validation.validate import Validation, ValidationPlan, validate

__all__ = ["Validation", "ValidationOptions", "ValidationPlan", "ValidationUnit", "validate"]
