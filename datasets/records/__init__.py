"""Reading a records directory: its index, its damaged files, and the source image of each record.

Read `index.py` first. `datasets.sharding` writes these directories. Nothing here imports MindSpore.
"""

from datasets.records.check import check_files
from datasets.records.index import INDEX, Records, check_labelled, load_index
from datasets.records.rows import sources

__all__ = ["INDEX", "Records", "check_files", "check_labelled", "load_index", "sources"]
