"""`flows.pretrain` with a flow that only waits: python -m tests.flows.waiting_chain CONFIG --data-root FOLDER.

The flow creates <FOLDER>/running and waits for <FOLDER>/go. Then it ends; if that file has a text, it ends with an
InputError.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets.base.errors import InputError
from flows.embedded import main


def load_flow() -> Callable[..., Any]:
    from prefect import flow

    @flow(name="waiting")
    def waiting(
        config: str, overrides: list[str], data_root: str, cluster: str | None, stages: list[str] | None
    ) -> SimpleNamespace:
        Path(data_root, "running").touch()
        while not Path(data_root, "go").exists():
            time.sleep(0.1)
        if found := Path(data_root, "go").read_text():
            raise InputError("go", expected="an empty file", found=found, todo="empty it")
        return SimpleNamespace(report=None)

    return waiting


if __name__ == "__main__":
    sys.exit(main(load_flow))
