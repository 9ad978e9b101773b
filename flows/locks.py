"""Who may write to an output: one run per source and split, and of workers only those that this run has sent."""

import errno
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

from pipeline.plan import Job
from schemas.files import remove_temporaries
from schemas.members import MemberError, open_regular, refuse_links

TRAINING = "train"
"""Name of the lock of a training."""


class PlanConflict(ValueError):
    """The output already holds another plan of the same source and split."""


@contextmanager
def locked(out: Path, name: str) -> Iterator[str]:
    """One run per output, source and split. The kernel drops the lock with its holder, so it is never stale.

    Yields a token for the holder's workers (see `fenced`). PlanConflict names another holder, MemberError a link in
    the output.
    """
    refuse_links(out)
    sweep_output(out)
    with lock_file(out, name) as file:
        if (holder := _take(file)) is not None:
            raise PlanConflict(f"{out}: {name} is being worked on by {holder}; wait for it")
        try:
            yield _new_fence(out, name)
        finally:
            file.truncate(0)


@contextmanager
def training_lock(out: Path) -> Iterator[None]:
    """One training per run folder. Nothing of the lock stays when it is released, and a holder that died has none.

    ValueError names another holder, MemberError a link in its place.
    """
    path = out / ".lock" / TRAINING
    while True:
        try:
            file = lock_file(out, TRAINING)
        except FileNotFoundError:  # the folder was removed between its making and its use
            continue
        holder = _take(file)
        if holder is not None:
            file.close()
            raise ValueError(
                f"{out}: another training is at work in this folder: {holder}. Wait for it, stop it, or use "
                "another --out"
            )
        if _is_still(file, path):
            break
        file.close()  # its holder has just removed it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        with suppress(OSError):  # another lock is in it
            path.parent.rmdir()


def _take(file: TextIO) -> str | None:
    """Lock a file and write this process's name into it; or, if another process has the lock, that one's name."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read() or "another process"
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return None


def _is_still(file: TextIO, path: Path) -> bool:
    """Whether the open file is the one that has this path."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(file.fileno())
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def sweep_output(out: Path) -> None:
    """Remove the temporary files of dead processes from an output."""
    for folder in (out, out / "plan", out / "manifests" / "runs", out / "report"):
        remove_temporaries(folder)


FENCE_SECONDS = 120.0
"""How long a run waits for a worker of a dead run to finish the write that it is in: a commit takes seconds."""


def _new_fence(out: Path, name: str) -> str:
    """Shut out the workers of earlier runs: a driver's death drops its lock at once, but its workers live for seconds
    more and may be in the middle of a commit. Waits for that, then no token but the new one is good."""
    token, until = uuid.uuid4().hex, time.monotonic() + FENCE_SECONDS
    with lock_file(out, f"{name}.fence") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise PlanConflict(
                        f"{out}: a worker of an earlier run of {name} is still writing; stop it, or wait for it"
                    ) from error
                time.sleep(0.05)
        file.truncate(0)
        file.write(token)
        file.flush()
    return token


@contextmanager
def fenced(job: Job, token: str) -> Iterator[None]:
    """A worker writes in here. RuntimeError, with nothing written, if its run is not the one that holds the lock."""
    with writing(Path(job.out)), lock_file(Path(job.out), f"{job.name}.fence") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        file.seek(0)
        if file.read() != token:
            raise RuntimeError(
                f"{job.out}: another run of {job.name} has taken over; this worker writes nothing more"
            )
        yield


def lock_file(out: Path, name: str) -> TextIO:
    """A file in the output's `.lock`, made if it is not there. Its content is ours, so it may be no link: what a link
    leads to would be emptied. MemberError for a link, and for what is no regular file."""
    folder = out / ".lock"
    if folder.is_symlink():
        raise MemberError(f"{folder} is a link, which is not followed")
    folder.mkdir(parents=True, exist_ok=True)
    file = open_regular(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, "r+")
    return cast("TextIO", cast("object", file))


FULL = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the quota is used up: free some space",
    errno.EFBIG: "a file may not grow so large here: raise the limit",
}
UNWRITABLE = FULL | {
    errno.EROFS: "the output is mounted read-only: mount it for writing, or choose another --out",
    errno.EACCES: "no permission to write there: change its owner or mode, or choose another --out",
}


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """An error of the output's disk says what to do, and where: on a full disk the kernel's own words name no file."""
    try:
        yield
    except OSError as error:
        explained = explain_write_error(error, UNWRITABLE, str(out))
        if explained is error:
            raise
        raise explained from error


def explain_write_error(error: OSError, advice: dict[int, str] = FULL, where: str = "") -> OSError:
    """An error whose words say what to do; the error itself if its number has no advice, or it says so already."""
    words = advice.get(error.errno or 0)
    if words is None or AGAIN in str(error):
        return error
    place = error.filename or where
    named = [str(place)] if place else []
    return OSError(error.errno, f"{words}, and {AGAIN}; what is finished is kept", *named)


AGAIN = "run the same command again"
