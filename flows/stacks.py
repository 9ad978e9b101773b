"""What a hung worker is doing: the stacks of its threads, taken from outside while it hangs.

A worker says in a small file which thread has which item in hand. A signal makes faulthandler write the stacks of all
threads to a second one: in C, so that a library which holds the GIL cannot prevent it. Both files are in memory and
end with the process; who is on the same machine, as the same user, reads them through /proc.
"""

import faulthandler
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = "sparrow-stacks"
SIGNAL = signal.SIGUSR1
SECONDS = 5.0
"""How long to wait for the stacks. A process that the kernel keeps (a lost mount) never writes them."""


class Hands:
    """What a worker has in hand. `address` (process, two file descriptors) is what `taken` wants."""

    def __init__(self) -> None:
        self._items: dict[int, str] = {}
        self._lock = threading.Lock()
        self._list, self._dump = os.memfd_create(NAME), os.memfd_create(NAME)
        faulthandler.register(SIGNAL, file=self._dump, all_threads=True, chain=False)
        self.address = os.getpid(), self._list, self._dump

    @contextmanager
    def holding(self, label: str) -> Iterator[None]:
        """This thread works on the item `label`."""
        thread = threading.get_ident()
        self._write(thread, label)
        try:
            yield
        finally:
            self._write(thread, None)

    def _write(self, thread: int, label: str | None) -> None:
        with self._lock:
            if label is None:
                self._items.pop(thread, None)
            else:
                self._items[thread] = label
            text = "".join(
                f"thread 0x{t:016x}: {item}\n" for t, item in self._items.items()
            ).encode()
            os.ftruncate(self._list, 0)
            os.pwrite(self._list, text, 0)


def taken(process: int, items: int, dump: int) -> str:
    """The stacks of another process's threads, after a line for each item that it has in hand. Empty: no such process,
    or it is not one that keeps them, or not this machine's."""
    place = Path(f"/proc/{process}/fd")
    try:
        if not all(f"memfd:{NAME} " in os.readlink(place / str(n)) for n in (items, dump)):
            return ""  # the number belongs to somebody else by now, whom the signal would end
        head = (place / str(items)).read_text()
        state = next(
            s for s in (place.parent / "status").read_text().splitlines() if s.startswith("State:")
        )
        os.kill(process, SIGNAL)
    except OSError:
        return ""
    text, until = "", time.monotonic() + SECONDS
    with suppress(OSError):  # it may end meanwhile
        while time.monotonic() < until:
            time.sleep(0.2)
            before, text = text, (place / str(dump)).read_text(errors="replace")
            if text and text == before:
                break
    missing = (
        f"It did not answer in {SECONDS:.0f} s: the kernel keeps it, as when a mount is lost.\n"
    )
    return f"process {process}, {state}\n{head}\n{text or missing}"


_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<name>.*)')


def top(stacks: str, label: str, most: int = 5) -> list[str]:
    """Of the thread that has `label` in hand: its last frames, `function (folder/file.py:line)`, innermost first."""
    thread = next(
        (m[1] for m in re.finditer(r"^thread (0x\w+): (.*)$", stacks, re.M) if m[2] == label), None
    )
    frames: list[str] = []
    inside = False
    for line in stacks.splitlines():
        if line.startswith(("Thread 0x", "Current thread 0x")):
            inside = thread is not None and thread in line
        elif inside and (found := _FRAME.match(line)) and len(frames) < most:
            frames.append(
                f"{found['name']} ({'/'.join(Path(found['file']).parts[-2:])}:{found['line']})"
            )
    return frames
