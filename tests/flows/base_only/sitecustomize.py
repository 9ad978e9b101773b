"""Python runs this at its start, where this folder is on PYTHONPATH: packages outside the base are as not installed.

BASE_ONLY names a JSON file with `modules`, the top-level modules to hide, and `packages`, the distributions.
"""

import json
import os
import re
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

HIDDEN = json.loads(Path(os.environ["BASE_ONLY"]).read_text())
MODULES = frozenset(HIDDEN["modules"])
PACKAGES = frozenset(HIDDEN["packages"])
SITE = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}


class BaseOnly(PathFinder):
    """Finds what the base has. Python itself then says what it says of a module that is not installed."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname in MODULES:  # copies elsewhere stay: Ray brings its own psutil
            path = [place for place in sys.path if place not in SITE]
        return super().find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, *context):
        for found in super().find_distributions(*context):
            name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
            if name not in PACKAGES:
                yield found


sys.meta_path[sys.meta_path.index(PathFinder)] = BaseOnly
