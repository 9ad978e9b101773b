"""Flags: marks that a person puts on samples, kept in a text file of referent ids outside the output."""

import hashlib
import os
import threading
from pathlib import Path

from schemas.files import write_whole


def default_file(out: Path) -> Path:
    """Where the flags of an output are by default: the user's data folder, one file per output."""
    base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    place = str(out.resolve())
    return (
        base
        / "sparrow"
        / "flags"
        / f"{out.resolve().name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}.txt"
    )


class Flags:
    """A set of referent ids in a file, one a line, sorted; lines with # are comments. Read anew each time."""

    def __init__(self, file: Path, out: Path):
        """ValueError for a file inside the output, which is only read."""
        if file.resolve().is_relative_to(out.resolve()):
            raise ValueError(
                f"--flags {file} is inside {out}, to which browse never writes; put it somewhere else"
            )
        self.file = file
        self._lock = threading.Lock()

    def read(self) -> set[str]:
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return set()
        return {line.strip() for line in lines if line.strip() and not line.startswith("#")}

    def mark(self, referent_id: str, flagged: bool) -> set[str]:
        """Mark or unmark; returns all flags. The file is replaced in one step."""
        with self._lock:
            flags = self.read()
            flags = flags | {referent_id} if flagged else flags - {referent_id}
            write_whole(self.file, self.text(flags))
        return flags

    @staticmethod
    def text(flags: set[str]) -> str:
        return "".join(f"{flag}\n" for flag in sorted(flags))
