"""What a store is to a publisher: objects that are looked at, and written on the condition that they are as seen.

`Plain` writes through any fsspec file system, which has no conditions; `manifests.publish.s3` has them. Credentials are
found by botocore or fsspec where they always look, and are never read, kept or shown here.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

NEW = "*"
"""A condition of a write: there is no such object yet. Any other condition is the ETag that was seen."""


class Changed(Exception):
    """The object is not, or no longer, as the condition of the write says."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it was at one moment. sha256: "" where the store knows none; data: only of `read`."""

    etag: str
    size: int
    when: datetime | None = None
    sha256: str = ""
    data: bytes = b""


class Store(Protocol):
    """Objects under one address. `key` is the path below it. OSError says what the store refused, and what to do."""

    url: str
    conditional: bool
    """Whether `over` counts. If not, whoever writes last wins."""
    stop: threading.Event
    """Once set, no more requests are begun."""

    def look(self, key: str) -> Seen | None: ...

    def read(self, key: str) -> Seen | None: ...

    def digest(self, key: str) -> str:
        """sha256 of an object that is read back in full. FileNotFoundError if it is not there."""
        ...

    def write(self, key: str, data: bytes, *, over: str) -> str:
        """The ETag of what is there now. Changed, with nothing written, unless `over` holds."""
        ...

    def upload(self, key: str, path: Path, sha256: str, *, over: str) -> None:
        """A file of this sha256; a few MiB of it are in memory at once. Changed as `write`."""
        ...

    def names(self, folder: str) -> Iterator[str]:
        """Names of the objects in a folder."""
        ...


class Plain:
    """Any fsspec file system. Nothing is conditional: one publisher at a time."""

    conditional = False

    def __init__(self, url: str):
        import fsspec

        self.url, self.stop = url.rstrip("/"), threading.Event()
        self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)

    def _path(self, key: str) -> str:
        if self.stop.is_set():
            raise KeyboardInterrupt
        return f"{self._root}/{key}"

    def look(self, key: str) -> Seen | None:
        try:
            return Seen("", self._fs.info(self._path(key))["size"])
        except FileNotFoundError:
            return None

    def read(self, key: str) -> Seen | None:
        try:
            data = self._fs.cat_file(self._path(key))
        except FileNotFoundError:
            return None
        return Seen("", len(data), data=data)

    def digest(self, key: str) -> str:
        with self._fs.open(self._path(key), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(self, key: str, data: bytes, *, over: str) -> str:
        self._fs.pipe_file(self._path(key), data)
        return ""

    def upload(self, key: str, path: Path, sha256: str, *, over: str) -> None:
        self._fs.put_file(str(path), self._path(key))

    def names(self, folder: str) -> Iterator[str]:
        with suppress(FileNotFoundError):
            yield from (
                name.rsplit("/", 1)[-1] for name in self._fs.ls(self._path(folder), detail=False)
            )
