"""Shards that are to be made again: noted down before any of them is touched, so that an interruption loses none."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from schemas.files import sync


def _asked(out: Path) -> Path:
    """A folder with an empty file for each shard that is to be made again: a name cannot be half written."""
    return out / ".staging" / "again"


def ask_again(out: Path, names: Iterable[str]) -> None:
    """Note down that these shards are to be made again, before any of them is touched. A shard that is committed stays
    until its successor takes its place; whichever run comes next, it makes them, and then forgets (`made_again`)."""
    folder = _asked(out)
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if folder.exists():
        sync(folder)


def asked_again(out: Path) -> set[str]:
    """Names of the shards that are to be made again."""
    folder = _asked(out)
    return set(os.listdir(folder)) if folder.is_dir() else set()


def made_again(out: Path, name: str) -> None:
    """A shard's successor is there, or no plan has the shard any longer."""
    folder = _asked(out)
    (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # there are others, or none has ever been
        folder.rmdir()
