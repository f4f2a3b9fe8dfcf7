"""What all stages share: errors, digests, atomic files and directories, locks, calls in other processes.

Read `errors.py` and `files.py` first. This room imports nothing else of the project. It is the only room of which other
packages may import single files: `datasets.base.errors`, `.digests`, `.files`, `.lock` and `.parallel`.
"""

from datasets.base.digests import file_digest, value_digest
from datasets.base.errors import InputError
from datasets.base.files import StageResult, atomic_directory, atomic_write

__all__ = ["InputError", "StageResult", "atomic_directory", "atomic_write", "file_digest", "value_digest"]
