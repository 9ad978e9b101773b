"""What a worker process and its libraries print: into a file of the run's folder, not into the terminal."""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

PATTERN = "worker-*.log"


class WorkerLog:
    """Takes the place of this process's standard output and error, also for libraries that are not Python's."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._size = 0

    def write_to(self, folder: str) -> None:
        """From now on into `folder`. Where this node cannot write there, all stays as it is."""
        name = PATTERN.replace("*", f"{socket.gethostname()}-{os.getpid()}")
        try:
            file = os.open(
                Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666
            )
        except OSError:
            return
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for standard in (1, 2):
            os.dup2(file, standard)
        os.close(file)
        # Ray has put streams of its own here, which write elsewhere.
        sys.stdout, sys.stderr = (
            os.fdopen(n, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)
            for n in (1, 2)
        )
        self._file, self._size = 2, 0

    def ends(self, label: str) -> None:
        """A task ends: if something was printed since the last one, say what was worked on."""
        if self._file is None:
            return
        with suppress(OSError):
            if os.fstat(self._file).st_size > self._size:
                os.write(self._file, f"^ printed up to the end of {label}\n".encode())
            self._size = os.fstat(self._file).st_size


def remove_empty(folder: Path) -> None:
    """Logs of workers that had nothing to say."""
    for path in folder.glob(PATTERN):
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
