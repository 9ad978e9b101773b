"""The whole product, run as a user runs it: in processes of its own, through the command line."""

import hashlib
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from filelock import FileLock

BIN = Path(sys.executable).parent


class Run:
    """A command in a session of its own, with a mark in its environment by which its descendants are found."""

    def __init__(self, *words: object, log: Path):
        self.mark = f"SPARROW_TEST={uuid.uuid4().hex}"
        self.log = log
        name, value = self.mark.split("=")
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [str(BIN / str(words[0])), *map(str, words[1:])],
                stdout=file,
                stderr=file,
                env={"OMP_NUM_THREADS": "1"} | os.environ | {name: value},
                start_new_session=True,
            )

    def wait(self, timeout: float = 400) -> int:
        return self.process.wait(timeout)

    def text(self) -> str:
        return self.log.read_text()

    def descendants(self) -> list[str]:
        """Command lines of living processes that carry the mark."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (place / "environ").read_bytes():
                    command = (
                        (place / "cmdline")
                        .read_bytes()
                        .replace(b"\0", b" ")
                        .decode(errors="replace")
                    )
                    state = (place / "stat").read_text().rsplit(")", 1)[1].split()[0]
                    if state != "Z":
                        found.append(f"{place.name} {command}")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def gone(self, within: float = 30) -> list[str]:
        """What is still alive after waiting for up to `within` seconds."""
        deadline = time.monotonic() + within
        while (left := self.descendants()) and time.monotonic() < deadline:
            time.sleep(0.3)
        return left


@pytest.fixture
def run(tmp_path):
    """Start commands; whatever they leave is killed at the end of the test."""
    started: list[Run] = []

    def start(*words: object) -> Run:
        started.append(Run(*words, log=tmp_path / f"log{len(started)}.txt"))
        return started[-1]

    yield start
    for one in started:
        for line in one.descendants():
            subprocess.run(["kill", "-9", line.split()[0]], check=False, capture_output=True)


def shard_hashes(out: Path) -> dict[str, str]:
    """sha256 of every shard and of every part that must be reproducible."""
    files = [*out.glob("*/*/shards/*.tar"), *(p for p in out.glob("manifests/*/*.parquet"))]
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.parent.name not in ("timings", "runs")
    }


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """`sparrow demo` with two Ray workers, finished. Nobody writes to it: all processes of pytest-xdist share it."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    base = tmp_path_factory.getbasetemp()
    place = (base if alone else base.parent) / "demo"
    with FileLock(place.with_suffix(".lock")):
        out = place / "out"
        if not (place / "done").exists():
            place.mkdir()
            one = Run("sparrow", "demo", "--out", out, "--workers", 2, log=place / "log.txt")
            assert one.wait() == 0, one.text()[-4000:]
            assert one.gone() == []
            (place / "done").touch()
    return out
