"""Prints facts about the interpreter that runs this source with `-c`, as JSON. Any Python 3 runs it within a second.

Arguments: names of modules. Where Python finds them is printed; none is imported.
"""

import glob
import importlib.util
import json
import os
import re
import sys
from typing import Optional

TOOLKIT = "/usr/local/Ascend/ascend-toolkit/latest"


def place_of(module: str) -> Optional[str]:
    spec = importlib.util.find_spec(module)
    return None if spec is None else spec.origin or str(list(spec.submodule_search_locations or ()))


def text_of(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    with open(path) as file:
        return file.read()


def version_of(module: str) -> Optional[str]:
    """Return the version that a package's version.py names; None if there is none."""
    place = os.path.join(os.path.dirname(place_of(module) or ""), "version.py")
    found = re.search(r"version\w*\s*(:[^=]*)?=\s*['\"](\d[^'\"]*)", text_of(place))
    return found.group(2) if found else None


def cann() -> Optional[str]:
    """Return the release of CANN; None if it is not in its usual folder or the one that its set_env.sh exports."""
    for home in (os.environ.get("ASCEND_HOME_PATH"), os.environ.get("ASCEND_TOOLKIT_HOME"), TOOLKIT):
        for path in glob.glob(os.path.join(home or TOOLKIT, "*", "ascend_toolkit_install.info")):
            found = re.search(r"^version=(\S+)", text_of(path), re.MULTILINE)
            if found:
                return found.group(1)
    return None


print(
    json.dumps(
        {
            "python": sys.version.split()[0],
            "mindspore": version_of("mindspore"),
            "numpy": version_of("numpy"),
            "cann": cann(),
            "places": {module: place_of(module) for module in sys.argv[1:]},
        }
    )
)
