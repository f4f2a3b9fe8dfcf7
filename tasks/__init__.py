"""Prefect tasks: one file per stage, with retries and artifacts around one call into datasets/ or mae/.

Read stage.py first.
"""

import mae  # noqa: F401 (first of all, so that `import datasets` finds this project's package)
