"""Shards that are to be made again: queued on disk before any of them is touched, so that an interruption loses none."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from schemas.files import sync


def _queue(out: Path) -> Path:
    """A folder with an empty file for each shard that is to be made again: a name cannot be half written."""
    return out / ".staging" / "requeued"


def requeue(out: Path, names: Iterable[str]) -> None:
    """Queue shards to be made again, before any of them is touched. A shard that is committed stays until its successor
    takes its place; the next run, whichever it is, makes the queued ones and takes each off (`finish_requeued`)."""
    folder = _queue(out)
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if folder.exists():
        sync(folder)


def requeued(out: Path) -> set[str]:
    """Names of the shards that are to be made again."""
    folder = _queue(out)
    return set(os.listdir(folder)) if folder.is_dir() else set()


def finish_requeued(out: Path, name: str) -> None:
    """A shard's successor is there, or no plan has the shard any longer."""
    folder = _queue(out)
    (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # there are others, or none has ever been
        folder.rmdir()
