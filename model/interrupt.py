"""Signals ask a training to end: the first one after the step under way, a second one at once.

Python runs the handler of a signal between two instructions of the main thread, which may be waiting for other
processes. So a thread reads what the kernel delivers (`signal.set_wakeup_fd`).
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

REPEATS = {signal.SIGINT: 0.3, signal.SIGTERM: 5.0, signal.SIGHUP: 5.0}
"""Seconds in which a further signal is the same request: Slurm sends SIGTERM to every process, and torchrun hands its
own on; `timeout` sends what it sends to its child and to the whole group."""
SIGNALS = tuple(REPEATS)
_END = 0


class Interruption:
    """number: of the signal that asked for an end; 0: none did."""

    number: int = 0

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that this signal has ended."""
        return 128 + self.number if self.number else 0


@contextmanager
def interruptible(announce: bool = True) -> Iterator[Interruption]:
    """Signals are noted, not obeyed; a second one ends the process at once, with exit code 128 + its number.

    announce: write a line to stderr when the first one comes. Only a main thread can listen: in another one, nothing
    is ever noted. Signals that are ignored, as SIGHUP by `nohup`, stay so.
    """
    found = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    def note(number: int, _: object) -> None:
        found.number = found.number or number

    listened = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    terminals = [output for output in (1, 2) if os.isatty(output)]
    watcher = threading.Thread(
        target=_watch, args=(reading, found, announce, terminals), daemon=True
    )
    watcher.start()
    before = {number: signal.signal(number, note) for number in listened}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield found
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writing, bytes([_END]))
        watcher.join()
        os.close(writing)
        os.close(reading)


def _watch(reading: int, found: Interruption, announce: bool, terminals: Sequence[int]) -> None:
    """Read the number of each signal that comes, until `_END`. terminals: which of the outputs are one; with SIGHUP it
    is gone, and writing to it would be an error."""
    since: float | None = None
    while (number := os.read(reading, 1)[0]) != _END:
        if number not in SIGNALS:
            continue
        now = time.monotonic()
        if since is None:
            since = now
            found.number = number
            if number == signal.SIGHUP:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                for output in terminals:
                    os.dup2(nowhere, output)
                os.close(nowhere)
            if announce:
                name = signal.Signals(number).name
                text = f"\n{name}: the step is finished and saved; a second one ends at once\n"
                os.write(2, text.encode())  # print may be busy in the thread that was interrupted
        elif now - since > REPEATS[signal.Signals(number)]:
            os._exit(128 + number)


@contextmanager
def signals_held() -> Iterator[None]:
    """Processes that start in here are born with `SIGNALS` blocked. This thread gets what came when the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """In a process that was started in `signals_held`: a signal to the whole group is the parent's business.

    The parent's own SIGTERM still ends it, which is how a loader gets rid of a process that does not end by itself.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while True:
        came = signal.sigwaitinfo(SIGNALS)
        if came.si_signo == signal.SIGTERM and came.si_pid == os.getppid():
            os._exit(0)
