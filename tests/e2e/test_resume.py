"""Interrupt it, kill it, by the command: the bytes are the same, and nothing is left behind."""

import os
import signal
import time
from pathlib import Path

import pytest

from manifests.verify import verify
from tests.chaos.world import make_corpus
from tests.e2e.conftest import shard_hashes

pytestmark = pytest.mark.timeout(300)


def staged_or_done(out: Path) -> int:
    return len(list(out.glob(".staging/*/*.clip"))) + 2 * len(
        list(out.glob("manifests/shards/*.parquet"))
    )


def until(out: Path, progress: int, process, timeout: float = 240) -> None:
    """Wait until a run has got so far."""
    deadline = time.monotonic() + timeout
    while staged_or_done(out) < progress:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_then_sigkill_then_done_gives_the_same_bytes(run, tmp_path):
    """As little as has several shards, against one process that nobody disturbs; `tests/chaos` kills at every step."""
    corpus, whole, out = (
        make_corpus(tmp_path / "corpus", 12, 8),
        tmp_path / "whole",
        tmp_path / "out",
    )
    shards = ("--set", "shard.max_referents=4")
    alone = run(
        "sparrow",
        "curate",
        "hcstvg",
        "--data-root",
        corpus,
        "--out",
        whole,
        "--executor",
        "inline",
        *shards,
    )
    assert alone.wait() == 0, alone.text()[-3000:]
    command = (
        "sparrow",
        "curate",
        "hcstvg",
        "--data-root",
        corpus,
        "--out",
        out,
        "--workers",
        2,
        *shards,
    )

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
    assert len(committed) < len(list(whole.glob("manifests/shards/*.parquet")))
    for table in ("clips", "referents", "members"):  # whatever is committed is there in full
        assert committed <= {p.stem for p in out.glob(f"manifests/{table}/*.parquet")}

    third = run(*command)
    assert third.wait() == 0, third.text()[-3000:]
    assert shard_hashes(out) == shard_hashes(whole)
    assert verify(out, deep=True).problems == []
    assert not list((out / ".staging").iterdir())
    # Nobody was left to stop Ray: its processes end by themselves, two agents of its own only after a minute.
    assert [line for line in second.gone(5) if "Agent" not in line] == []
