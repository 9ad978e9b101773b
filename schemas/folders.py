"""Folders that are there whole or not at all: written beside their place, synced and renamed.

    .<name>.unfinished   is being written; the writer holds a lock on it
    .<name>.old          the folder that is being replaced, where two folders cannot change places in one step
    .<name>.removed      is being removed

A killed process leaves such a folder behind; the next writer to the same place, or `remove_leftovers`, settles it. The
kernel drops a lock with its holder, so the folder of a live process is left alone.
"""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from schemas.files import sync

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of linux/fcntl.h and linux/fs.h."""
LIBC = ctypes.CDLL(None, use_errno=True)
MANY = 1000
"""Files in a folder from which on its whole file system is synced at once, and not file by file."""


@contextmanager
def replacing_folder(place: Path) -> Iterator[Path]:
    """A new folder to write to; when the block ends it takes the place of `place`. Errors as `temporary_folder`."""
    place = place.resolve()
    with temporary_folder(place) as fresh:
        yield fresh
        put_in_place(fresh, place)


@contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """A new, empty folder beside `place` to write to. It is removed when the block ends, unless it was put in place.

    FileExistsError if another process is writing to it; other OSErrors as the file system has them.
    """
    fresh = _hidden(place, "unfinished")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    if not _remove_if_dead(fresh):
        words = "another process is writing this folder: wait for it"
        raise FileExistsError(errno.EEXIST, words, str(place))
    _settle_old(place)
    fresh.mkdir()
    lock = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fresh
    finally:
        if _is_open_as(fresh, lock):  # not after `put_in_place`: then it may be another writer's
            shutil.rmtree(fresh, ignore_errors=True)
        os.close(lock)


def put_in_place(fresh: Path, place: Path) -> None:
    """Give a folder of `temporary_folder` its name, once its content is on the disk. An older folder is replaced."""
    _sync_tree(fresh)
    old = _hidden(place, "old")
    if not place.exists():
        fresh.rename(place)
    elif _exchange(fresh, place):
        old = fresh
    else:
        place.rename(old)
        try:
            fresh.rename(place)
        except OSError:
            old.rename(place)
            raise
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(place: Path) -> None:
    """Remove a folder; a process killed meanwhile leaves no part of it under its name."""
    removed = _hidden(place, "removed")
    shutil.rmtree(removed, ignore_errors=True)
    place.rename(removed)
    shutil.rmtree(removed)


def remove_leftovers(parent: Path, pattern: str) -> None:
    """Settle what dead processes have left of folders in `parent` whose name fits the glob `pattern`."""
    for state in ("unfinished", "removed"):
        for left in parent.glob(f".{pattern}.{state}"):
            _remove_if_dead(left)
    for old in parent.glob(f".{pattern}.old"):
        _settle_old(parent / old.name[1:].removesuffix(".old"))


def _hidden(place: Path, state: str) -> Path:
    return place.with_name(f".{place.name}.{state}")


def _is_open_as(folder: Path, handle: int) -> bool:
    """Whether an open folder has this name."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _settle_old(place: Path) -> None:
    """A process was killed after the first of two renames: undo it. After the second one: remove the old folder."""
    old = _hidden(place, "old")
    if old.exists() and not place.exists():
        old.rename(place)
    shutil.rmtree(old, ignore_errors=True)


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


def _sync_tree(folder: Path) -> None:
    """Everything in a folder goes to the disk."""
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    if len(paths) > MANY and hasattr(LIBC, "syncfs"):
        _sync_file_system(folder)
        return
    for path in (*paths, folder):
        sync(path)


def _sync_file_system(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        if LIBC.syncfs(handle):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Whether two folders have changed places, in one step. Some systems cannot do it."""
    names = os.fsencode(one), os.fsencode(other)
    with suppress(AttributeError):  # a C library without this call
        return LIBC.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0
    return False
