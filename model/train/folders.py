"""Folders that are there whole or not at all: written temporary_beside their place, synced and renamed.

    .<name>.unfinished      is being written; who writes it holds a lock
    .<name>.removed         is being removed

A killed process leaves such a folder behind, and `remove_leftovers` removes it. The kernel drops the lock with its holder, so
that of a live process is left alone.
"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from schemas.files import sync

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def temporary_beside(place: Path) -> Iterator[Path]:
    """A new, empty folder next to `place` to write to. It is removed when the block ends, unless it was published.

    FileExistsError if another process is writing to it; other OSErrors as the file system has them.
    """
    fresh = _hidden(place, "unfinished")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    if fresh.exists() and not _remove_if_dead(fresh):
        raise FileExistsError(errno.EEXIST, "another process is writing this folder", str(fresh))
    fresh.mkdir()
    lock = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # after `put_in_place` there is none
        os.close(lock)


def put_in_place(fresh: Path, place: Path) -> None:
    """Give a folder of `temporary_beside` its name, once its content is on the disk. An older folder of this name is replaced."""
    for path in fresh.rglob("*"):
        sync(path)
    sync(fresh)
    old = _hidden(place, "removed")
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
    fresh.rename(place)
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(place: Path) -> None:
    """Remove a folder; a process killed meanwhile leaves no part of it under its name."""
    old = _hidden(place, "removed")
    place.rename(old)
    shutil.rmtree(old)


def remove_leftovers(parent: Path, pattern: str) -> None:
    """Remove what dead processes have left of folders in `parent` whose name fits the glob `pattern`."""
    for state in ("unfinished", "removed"):
        for left in parent.glob(f".{pattern}.{state}"):
            _remove_if_dead(left)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """safetensors reports an error of the disk as one of its own. Here it is raised as the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(folder)) from error


def _hidden(place: Path, state: str) -> Path:
    return place.with_name(f".{place.name}.{state}")


def _remove_if_dead(folder: Path) -> bool:
    """Whether the folder is gone afterwards. It stays if a live process is writing it."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        shutil.rmtree(folder)
        return True
    finally:
        os.close(lock)
