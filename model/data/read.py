"""Read: the members of one sample by one range read, from a local file or anything that fsspec opens."""

import hashlib
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import fsspec

from model.data.index import Entry, Index, Member
from schemas.members import MemberError, open_regular, read_range, tar_path

_HEADER = tarfile.BLOCKSIZE
_OPEN = 64


class Corrupt(ValueError):
    """A sample's bytes are not what the manifests say, or cannot be understood."""


class Unfit(Corrupt):
    """A sample that is whole, but that the host in training cannot take."""


class Reader:
    """Reads members of an output; files stay open between reads, at most 64. Each process makes its own."""

    def __init__(self, out: str, *, verify: bool = False):
        """verify: compare each member's sha256 too."""
        self.verify = verify
        self._fs, self._root = fsspec.core.url_to_fs(out)
        self._local = "file" in _protocols(self._fs)
        self._files: OrderedDict[str, BufferedReader] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def members(self, entry: Entry, only: str | None = None) -> dict[str, bytes]:
        """Name -> bytes of all members of an entry, or of one. Corrupt names what differs; OSError: no such tar."""
        wanted = [m for m in entry.members if only in (None, m.name)]
        if not wanted:
            raise Corrupt(f"{entry.tar}: {entry.key} has no member {only or 'at all'}")
        start = wanted[0].offset - _HEADER
        try:
            data = self._range(entry.tar, start, wanted[-1].offset + wanted[-1].size)
        except MemberError as error:
            raise Corrupt(f"{entry.key}: {error}") from error
        return {m.name: self._checked(entry, m, data, m.offset - start) for m in wanted}

    def _checked(self, entry: Entry, member: Member, data: bytes, at: int) -> bytes:
        name = f"{entry.key}.{member.name}"
        body = data[at : at + member.size]
        try:
            header = tarfile.TarInfo.frombuf(data[at - _HEADER : at], "utf-8", "strict")
        except tarfile.HeaderError as error:
            raise Corrupt(f"{entry.tar}: no tar header before {name}: {error}") from error
        if (header.name, header.size) != (name, member.size) or len(body) != member.size:
            raise Corrupt(
                f"{entry.tar}: {name} should have {member.size} bytes at {member.offset}; there {header.name} has "
                f"{header.size}, of which {len(body)} can be read"
            )
        if self.verify and hashlib.sha256(body).hexdigest() != member.sha256:
            raise Corrupt(f"{entry.tar}: {name} has another sha256 than the manifests say")
        return body

    def _range(self, tar: str, start: int, stop: int) -> bytes:
        path = str(tar_path(Path(self._root), tar)) if self._local else f"{self._root}/{tar}"
        if not self._local:
            size = self._size(path)
            if not 0 <= start <= stop <= size:
                raise MemberError(f"{tar}: bytes {start} to {stop} of {size}")
            return self._fs.cat_file(path, start=start, end=stop)
        if path not in self._files:
            self._files[path] = open_regular(Path(path))
            if len(self._files) > _OPEN:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return read_range(self._files[path], start, stop - start, "a sample")

    def _size(self, path: str) -> int:
        """Bytes of a remote tar, asked once."""
        if path not in self._sizes:
            self._sizes[path] = int(self._fs.info(path)["size"])
        return self._sizes[path]

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


def plain_webdataset(index: Index) -> Iterator[tuple[Entry, dict[str, bytes]]]:
    """The same entries and members, tar by tar, by `webdataset` itself: nothing here is a format of our own."""
    import webdataset as wds

    rows = {key: row for row, key in enumerate(index.referents["referent_id"].to_pylist())}
    fs, root = fsspec.core.url_to_fs(index.out)
    tars = [fs.unstrip_protocol(f"{root}/{path}") for path in index.shards["path"].to_pylist()]
    for sample in wds.WebDataset(tars, shardshuffle=False, empty_check=False):
        if sample["__key__"] in rows:
            yield (
                index.entry(rows[sample["__key__"]]),
                {name: data for name, data in sample.items() if not name.startswith("__")},
            )


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
