"""A JSON file with checksums of the files beside it, and one of itself.

    {..., "files": {"model.safetensors": {"size": 1234, "sha256": "..."}, ...}, "sha256": "..."}

The last one is of the JSON's own content. It finds damage; who wants to deceive writes a new one.
"""

import errno
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Digests = dict[str, dict[str, Any]]
"""Name of a file -> its size in bytes and its sha256."""
FILES, CHECKSUM = "files", "sha256"


class DamagedError(ValueError):
    """What is wrong with a file, in words that begin with its name."""


def file_digests(paths: Iterable[Path]) -> Digests:
    """Sizes and sha256 of files, as they can be read now."""
    return {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in paths}


def dumps_checked(about: Mapping[str, Any], files: Digests) -> str:
    """The text of a JSON file that holds `about` and vouches for `files`."""
    words = {**about, FILES: files}
    return json.dumps({**words, CHECKSUM: _checksum(words)}, indent=2) + "\n"


def load_checked(path: Path) -> dict[str, Any]:
    """What `dumps_checked` made, without the checksum. What an earlier version wrote has neither that nor "files".

    DamagedError if the file is missing, is not JSON or has changed.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path.name} is missing") from error
    if not text:
        raise DamagedError(f"{path.name} is empty")
    try:
        about = json.loads(text)
    except ValueError as error:
        raise DamagedError(f"{path.name} is not valid JSON") from error
    if not isinstance(about, dict):
        raise DamagedError(f"{path.name} is not a JSON object")
    if FILES not in about and CHECKSUM not in about:
        return about
    stated = about.pop(CHECKSUM, None)
    if stated != _checksum(about):
        raise DamagedError(_changed(path.name))
    return about


def damages(folder: Path, files: Digests) -> list[str]:
    """What is wrong with files of a folder, one line each; none if all are as they were written.

    OSError if a file is there and may not be read.
    """
    lines = [_damage(folder / name, stated) for name, stated in files.items()]
    return [line for line in lines if line]


def _damage(path: Path, stated: Mapping[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != stated["size"]:
            return f"{path.name} has {size:,} bytes instead of {stated['size']:,}"
        same = _sha256(path) == stated["sha256"]
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        if error.errno != errno.EIO:  # a bad sector is damage, a missing permission is not
            raise
        return f"{path.name} cannot be read ({error.strerror})"
    return "" if same else _changed(path.name)


def _changed(name: str) -> str:
    return f"{name} has changed since it was saved (its sha256 differs)"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(words: Mapping[str, Any]) -> str:
    text = json.dumps(words, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
