"""Kill it, interrupt it, change the number of workers: the bytes are the same, and nothing is left behind."""

import os
import signal
import time
from pathlib import Path

import pytest

from manifests.verify import verify
from tests.e2e.conftest import shard_hashes

pytestmark = pytest.mark.timeout(300, func_only=True)  # the demo that both compare with is not their time


def staged_or_done(out: Path) -> int:
    return len(list(out.glob(".staging/*/*.clip"))) + 2 * len(list(out.glob("manifests/shards/*.parquet")))


def until(out: Path, progress: int, process, timeout: float = 240) -> None:
    """Wait until a run has got so far."""
    deadline = time.monotonic() + timeout
    while staged_or_done(out) < progress:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_then_sigkill_then_done_gives_the_same_bytes(demo, run, tmp_path):
    """One source of the demo, as little as has several shards; `tests/chaos` kills at every step."""
    out = tmp_path / "out"
    command = ("sparrow", "curate", "a2d", "--data-root", demo / "corpus" / "a2d", "--out", out, "--workers", 2,
               "--set", "shard.max_referents=4")  # fmt: skip

    first = run(*command)
    until(out, 1, first.process)
    os.kill(first.process.pid, signal.SIGINT)
    assert first.wait(60) == 130
    assert "run the same command again to resume" in first.text()
    assert first.gone() == []
    finished = staged_or_done(out)

    second = run(*command)
    until(out, finished + 1, second.process)
    os.kill(second.process.pid, signal.SIGKILL)
    second.wait(30)
    committed = {p.stem for p in out.glob("manifests/shards/*.parquet")}
    assert len(committed) < len(list(demo.glob("manifests/shards/a2d-*.parquet")))
    for table in ("clips", "referents", "members"):  # whatever is committed is there in full
        assert committed <= {p.stem for p in out.glob(f"manifests/{table}/*.parquet")}

    third = run(*command)
    assert third.wait() == 0, third.text()[-3000:]
    assert tars(out, "a2d") == tars(demo, "a2d")
    assert verify(out, deep=True).problems == []
    assert not list((out / ".staging").iterdir())
    # Nobody was left to stop Ray: its processes end by themselves, two agents of its own only after a minute.
    assert [line for line in second.gone(5) if "Agent" not in line] == []


def tars(out: Path, source: str) -> dict[str, str]:
    return {k: v for k, v in shard_hashes(out).items() if k.endswith(".tar") and k.startswith(f"{source}/")}


def test_one_worker_gives_the_bytes_of_two(demo, run, tmp_path):
    """One curates its source in one process beside another that does the same with another source."""
    started = {}
    for source in ("vid_sentence", "refsav"):
        places = ("--data-root", demo / "corpus" / source, "--out", tmp_path / source)
        started[source] = run("sparrow", "curate", source, *places, "--workers", 1, "--set", "shard.max_referents=4")
    for source, one in started.items():
        assert one.wait() == 0, one.text()[-3000:]
        assert tars(demo, source)
        assert tars(tmp_path / source, source) == tars(demo, source)
