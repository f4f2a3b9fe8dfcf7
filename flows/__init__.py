"""Prefect flows: which stage runs after which, and the commands that start Prefect. Read pretrain.py first."""

import mae  # noqa: F401 (first of all, so that `import datasets` finds this project's package)
