"""A folder that takes the place of an older one in one step, whole and on the disk, or not at all.

    .NAME.lock   held by the process that writes
    .NAME.tmp    the new folder, until it is whole; then, until it is removed, the old one
    .NAME.old    the old one, on a file system where two folders cannot change places in one step

A killed process leaves some of these beside the folder. The next one that writes to the same place removes them.
"""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.files import sync

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of linux/fcntl.h and linux/fs.h."""
LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def replacing_folder(place: Path) -> Iterator[Path]:
    """A new folder beside `place` to write to; when the block ends it takes the place of `place`.

    If the block raises, `place` stays as it was. BlockingIOError where another process is writing to the same place;
    other OSErrors as the file system has them.
    """
    place = place.resolve()
    fresh, old = _beside(place, "tmp"), _beside(place, "old")
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        _restore(place, fresh, old)
        fresh.mkdir()
        try:
            yield fresh
            _sync_all(fresh)
            _swap(fresh, place, old)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _beside(place: Path, state: str) -> Path:
    return place.with_name(f".{place.name}.{state}")


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Keep other writers away from `place`. The kernel drops the lock with its holder, so it is never stale."""
    path = _beside(place, "lock")
    lock = _locked(path, place)
    while not os.fstat(lock).st_nlink:  # its last holder has removed it since it was opened
        os.close(lock)
        lock = _locked(path, place)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _locked(path: Path, place: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        words = "another process is writing this folder: wait for it"
        raise BlockingIOError(errno.EAGAIN, words, str(place)) from None
    except OSError:
        os.close(lock)
        raise
    return lock


def _restore(place: Path, fresh: Path, old: Path) -> None:
    """Undo what a killed process has begun."""
    if old.exists() and not place.exists():  # it was killed between two renames
        os.replace(old, place)
    for left in (fresh, old):
        if left.exists():
            shutil.rmtree(left)


def _sync_all(folder: Path) -> None:
    """Everything on its file system goes to the disk: one call for a million pictures, not one for each."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if LIBC.syncfs(handle):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(handle)


def _swap(fresh: Path, place: Path, old: Path) -> None:
    if not place.exists():
        os.replace(fresh, place)
    elif not _exchanged(fresh, place):
        os.replace(place, old)
        try:
            os.replace(fresh, place)
        except OSError:
            os.replace(old, place)
            raise
    sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two folders have changed places, in one step. Some file systems cannot do it."""
    names = os.fsencode(one), os.fsencode(other)
    failed = LIBC.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
    return not failed
