"""The SQL of the WHERE box, in a process of its own that may be killed."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import duckdb

MEMORY = 2 << 30
"""Bytes that a query may use."""
SECONDS = 10.0
"""A query that takes longer is stopped."""
_CHILD = Path(__file__).with_name("where_child.py")
_OUT_OF_MEMORY = (9, -signal.SIGABRT)
"""Exit status of a child that ran out of memory: its own, and that of a C++ library that cannot go on."""


class WhereProcess:
    """Runs queries with a WHERE of the user over a DuckDB file, one at a time.

    The file is held open and need not have a name any more. After a query that was stopped a new process is started
    at once, so that the next query finds it ready.
    """

    def __init__(self, database: Path) -> None:
        self._file = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
        self._one_at_a_time = threading.Lock()
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-P", str(_CHILD)]
        limits = [f"/dev/fd/{self._file}", str(MEMORY), str(SECONDS)]
        self._child = subprocess.Popen(
            command + limits,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            pass_fds=[self._file],
            cwd="/",
        )
        self._is_ready = False

    def rows(self, where: str, sql: str, parameters: list) -> list[dict]:
        """Rows of a query whose condition holds `where`, which must be one SQL expression.

        duckdb.Error says what is wrong with it, TimeoutError that it took longer than SECONDS, MemoryError that it
        took more than MEMORY.
        """
        question = json.dumps({"where": where, "sql": sql, "parameters": parameters})
        if not self._one_at_a_time.acquire(timeout=SECONDS):
            raise TimeoutError("other queries keep this server busy; try again")
        try:
            answer = json.loads(self._ask(question))
        finally:
            self._one_at_a_time.release()
        if "error" in answer:
            raise duckdb.Error(answer["error"])
        return answer["rows"]

    def _ask(self, question: str) -> str:
        if not self._is_ready:  # a new process has opened its file when it says so
            self._is_ready = bool(self._read_line())
        stopped = threading.Event()

        def stop() -> None:
            stopped.set()
            self._child.kill()

        timer = threading.Timer(SECONDS, stop)
        timer.start()
        try:
            self._write_line(question)
            answer = self._read_line()
        finally:
            timer.cancel()
        if answer:
            return answer
        status = self._stop_child()
        self._start()
        if stopped.is_set():
            raise TimeoutError(f"the query was stopped after {SECONDS:g} seconds; ask for less")
        if status in _OUT_OF_MEMORY:
            raise MemoryError(
                f"the query was stopped: it needs more than {MEMORY >> 30} GiB of memory; ask for less"
            )
        raise OSError(f"the process that runs the WHERE ended with status {status}")

    def _read_line(self) -> str:
        """Empty if the child has ended."""
        assert self._child.stdout is not None
        return self._child.stdout.readline()

    def _write_line(self, line: str) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:  # reading says so too
            pass

    def _stop_child(self) -> int:
        self._child.kill()
        with self._child:
            return self._child.wait()

    def __del__(self) -> None:
        """The process ends with the last request that uses this; with the server too, since its input ends."""
        self._stop_child()
        os.close(self._file)
