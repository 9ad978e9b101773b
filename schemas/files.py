"""Files that survive a crash: each is there whole, with the old content or the new one, whenever a process dies."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """fsync a file, or a folder: then the names in it are on disk too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to; when the block ends it is synced and takes the place of `path` in one step.

    If the block raises, `path` stays as it was. What a killed process has left beside it is removed. OSError as the
    file system has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_beside(path)
    temporary, lock = _new_beside(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)  # it is there only if something has failed
        os.close(lock)


def write_whole(path: Path, data: bytes | str) -> None:
    """Replace a file in one step. A text is written as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sweep_beside(path: Path) -> None:
    """Remove what dead processes have left of their attempts to replace `path`."""
    before, after = _ends(path)
    for name in os.listdir(path.parent):
        if name.startswith(before) and name.endswith(after):
            remove_if_dead(path.parent / name)


def _ends(path: Path) -> tuple[str, str]:
    """How the name of a temporary file of `path` begins and ends."""
    return f".{path.name}.", ".tmp"


def _new_beside(path: Path) -> tuple[Path, int]:
    """A new file, and its lock: the kernel drops that with its holder, so a file without a lock is left over."""
    before, after = _ends(path)
    while True:
        temporary = path.with_name(f"{before}{secrets.token_hex(4)}{after}")
        lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:  # it was not removed before it was locked
            return temporary, lock
        os.close(lock)


def remove_temporaries(folder: Path) -> None:
    """Remove what dead processes have left of their attempts to replace a file in `folder`."""
    for temporary in folder.glob(".*.tmp"):
        remove_if_dead(temporary)


def remove_if_dead(temporary: Path) -> bool:
    """Remove a temporary file of `replacing` that no process is writing; whether it was removed."""
    try:
        lock = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # already removed, or not ours to open
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink(missing_ok=True)
    except OSError:  # a process is writing it
        return False
    else:
        return True
    finally:
        os.close(lock)
