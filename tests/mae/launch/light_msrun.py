"""MindSpore's msrun without the 4 seconds of processor time that importing MindSpore takes. Run as a script."""

import importlib.util
import sys
import types
from unittest import mock


def main() -> None:
    """Run the real msrun; only what it needs on Ascend or for binding cores is replaced."""
    root = importlib.util.find_spec("mindspore").submodule_search_locations[0]
    for name in ("", ".parallel"):  # packages whose __init__ is not run
        package = sys.modules["mindspore" + name] = types.ModuleType("mindspore" + name)
        package.__path__ = [root + name.replace(".", "/")]
    for name in ("utils", "runtime", "runtime.thread_bind_core"):
        sys.modules[f"mindspore.{name}"] = mock.MagicMock()
    sys.modules["mindspore.utils"].RSCPluginHandle().check_enable.return_value = False
    from mindspore.parallel.cluster.run import main as msrun

    msrun()


if __name__ == "__main__":
    main()
