"""Kill it, interrupt it, change the number of workers: the bytes are the same, and nothing is left behind."""

import os
import shutil
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
    out = tmp_path / "out"
    out.mkdir()
    shutil.copytree(demo / "corpus", out / "corpus", copy_function=shutil.copy2)

    first = run("sparrow", "demo", "--out", out, "--workers", 2)
    until(out, 3, first.process)
    os.kill(first.process.pid, signal.SIGINT)
    assert first.wait(60) == 130
    assert "run the same command again to resume" in first.text()
    assert first.gone() == []
    finished = staged_or_done(out)

    second = run("sparrow", "demo", "--out", out, "--workers", 2)
    until(out, finished + 12, second.process)
    os.kill(second.process.pid, signal.SIGKILL)
    second.wait(30)
    half = {p for p in out.glob("manifests/*/*.parquet") if p.parent.name not in ("runs", "shards")}
    committed = {p.stem for p in out.glob("manifests/shards/*.parquet")}
    assert 0 < len(committed) < len(list(demo.glob("manifests/shards/*.parquet")))
    assert committed <= {p.stem for p in half}  # whatever is committed is there in full

    third = run("sparrow", "demo", "--out", out, "--workers", 2)
    assert third.wait() == 0, third.text()[-3000:]
    assert shard_hashes(out) == shard_hashes(demo)
    assert verify(out, deep=True).problems == []
    assert not list((out / ".staging").iterdir())
    # Nobody was left to stop Ray: its processes end by themselves, two agents of its own only after a minute.
    assert [line for line in second.gone(5) if "Agent" not in line] == []


def test_one_worker_gives_the_bytes_of_two(demo, run, tmp_path):
    """One curates its source in one process beside another that does the same with another source."""
    started = {}
    for source in ("vid_sentence", "refsav"):
        places = ("--data-root", demo / "corpus" / source, "--out", tmp_path / source)
        started[source] = run("sparrow", "curate", source, *places, "--workers", 1, "--set", "shard.max_referents=4")
    for source, one in started.items():
        assert one.wait() == 0, one.text()[-3000:]
        mine = {k: v for k, v in shard_hashes(tmp_path / source).items() if k.endswith(".tar")}
        theirs = shard_hashes(demo)
        assert mine
        assert all(theirs[k] == v for k, v in mine.items())
        assert len(mine) == len([k for k in theirs if k.startswith(f"{source}/")])
