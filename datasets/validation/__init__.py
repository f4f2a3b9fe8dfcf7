"""Validation: one verdict per file of a data set. Read validate.py first.

options.py and plan.py decide which files there are, parts.py examines them one by one, whole.py and copies.py find what
only all of them show, conclusion.py makes the manifest and its totals.
"""

from datasets.validation.options import ValidationOptions
from datasets.validation.parts import Examined, ValidationUnit
from datasets.validation.validate import Validation, ValidationPlan, validate

__all__ = ["Examined", "Validation", "ValidationOptions", "ValidationPlan", "ValidationUnit", "validate"]
