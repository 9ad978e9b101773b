"""Files that survive a crash."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """fsync a file, or a folder: then the names in it are on disk too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
