"""Masked autoencoders on MindSpore: model, training, evaluation, launch. No Prefect.

The Python interface is imported from here: AutoConfig, AutoModel, Trainer, pipeline, load_image. Their modules are
loaded at their first use, so the command line does not wait for MindSpore.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae.api import AutoConfig, AutoModel, Trainer, load_image, pipeline

__all__ = ["AutoConfig", "AutoModel", "Trainer", "load_image", "pipeline"]


def _use_own_datasets() -> None:
    """Make `import datasets` find the package next to this one, here and in child processes.

    Hugging Face publishes another package of this name, which may come first on sys.path.

    Raises:
        ImportError: the other package has been imported already, or was installed over this project's.
    """
    root = Path(__file__).resolve().parents[1]
    own = root / "datasets" / "__init__.py"
    loaded = sys.modules.get("datasets")
    spec = find_spec("datasets") if loaded is None else loaded.__spec__
    found = None if spec is None else spec.origin or str(list(spec.submodule_search_locations or ()))
    if "arrow_dataset" in own.read_text():
        raise ImportError(
            f"datasets: expected maeflow's package, found Hugging Face's in {own}, installed over it; "
            "use a separate environment for each, and install maeflow again in this one"
        )
    if found is not None and Path(found).resolve() == own:
        return
    if loaded is not None:
        raise ImportError(
            f"datasets: expected maeflow's package {own}, found {found}, which this process imported before mae; "
            "import mae first, and use Hugging Face's datasets in another process or environment"
        )
    sys.path.insert(0, str(root))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))


_use_own_datasets()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mae.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
