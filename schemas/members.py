"""The one opener for bytes that a manifest names: inside the output, regular files, no more than is there.

Manifests may come from anyone. A path that leaves the output, a link, a pipe, a place behind the end of a tar or a
size of a terabyte are refused here, before anything is read or allocated. `schemas.contents` is for what members hold.
"""

import os
import re
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import cast

EXPORT_MARKER = "sparrow-export.json"
"""In every folder that `sparrow export` makes: what it holds. A folder without it, unless empty, is not ours to
replace."""
_TAR = re.compile(r"[a-z0-9_]+/[a-z0-9_-]+/shards/[a-z0-9_-]+\.tar")


class MemberError(ValueError):
    """A manifest names bytes that are not there, or that may not be read."""


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: str = "rb") -> BufferedReader:
    """A file that is one: MemberError for a link, a pipe, a folder or a device; OSError if it is not there.

    flags: of `os.open`, with the `mode` of the file that is returned.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if os.path.islink(path):
            raise MemberError(f"{path} is a link, which is not followed") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise MemberError(f"{path} is no regular file")
    return cast("BufferedReader", os.fdopen(handle, mode))


def refuse_links(out: Path) -> None:
    """MemberError if there is a link below an output that is about to be written to: where it leads is not the
    output. The output itself may be one. In a folder of an export below it, a link may lead to that folder's own files:
    some exports have such."""
    folders = [(os.fspath(out), "")]
    while folders:
        folder, export = folders.pop()
        try:
            with os.scandir(folder) as found:
                entries = list(found)
        except FileNotFoundError:  # nothing was written yet, or somebody has just taken it away
            continue
        if folder != os.fspath(out) and any(entry.name == EXPORT_MARKER for entry in entries):
            export = os.path.realpath(folder)
        for entry in entries:
            if entry.is_symlink() and not (export and _is_within(entry.path, export)):
                where = f"{entry.path!r} is a link to {os.readlink(entry.path)!r}"
                raise MemberError(f"{where}: nothing is written through links; remove it")
            if entry.is_dir(follow_symlinks=False):
                folders.append((entry.path, export))


def _is_within(path: str, folder: str) -> bool:
    """Whether a link leads into a folder (a real path), and not to the folder itself."""
    return os.path.realpath(path).startswith(folder + os.sep)


def tar_path(out: Path, relative: object) -> Path:
    """Where a shard's tar is. MemberError unless the name is `<source>/<split>/shards/<shard>.tar`, in this output."""
    if not isinstance(relative, str) or not _TAR.fullmatch(relative):
        raise MemberError(f"a tar is not called {relative!r:.100}")
    path = out / relative
    if not path.parent.resolve().is_relative_to(out.resolve()):
        raise MemberError(f"{relative} is behind a link that leaves the output")
    return path


def open_tar(out: Path, relative: object) -> BufferedReader:
    """A shard's tar, to be read. MemberError as `tar_path` and `open_regular`."""
    return open_regular(tar_path(out, relative))


def read_range(file: BufferedReader, offset: object, size: object, what: str = "") -> bytes:
    """Bytes of an open file. MemberError where the range is not in it; nothing is allocated for what is not there."""
    there = os.fstat(file.fileno()).st_size
    if type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
        raise MemberError(f"{file.name}: {what} cannot be {size!r:.30} bytes at {offset!r:.30}")
    if offset + size > there:
        end = offset + size
        raise MemberError(f"{file.name}: {what} would end at byte {end}, the file at {there}")
    return os.pread(file.fileno(), size, offset)


def read_member(out: Path, row: Mapping) -> bytes:
    """The bytes of a member: `path` of its tar, `offset` and `size` as the manifests have them."""
    with open_tar(out, row["path"]) as file:
        return read_range(file, row["offset"], row["size"], str(row.get("name", "")))
