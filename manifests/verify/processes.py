"""Shards checked in several processes: decoding takes most of the time of a deep check."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from manifests.verify.problem import Problem
from manifests.verify.shard import CheckedShard, check_shard


def check_shards(
    out: Path, names: Sequence[str], deep: bool, workers: int
) -> Iterator[CheckedShard]:
    """Each shard as its check ends, in any order.

    A file that brings down its process (a decoder's fault) is a problem of its shard: the others are checked anyhow.
    """
    if workers <= 1 or len(names) <= 1:
        yield from (check_shard(out, name, deep) for name in names)
        return
    suspects = []
    with _pool(min(workers, len(names))) as pool:
        tasks = {pool.submit(check_shard, out, name, deep): name for name in names}
        for task in as_completed(tasks):
            if (found := _result(task)) is not None:
                yield found
            else:
                suspects.append(tasks[task])
    for name in suspects:  # when a process dies, its pool loses every task
        with _pool(1) as alone:
            found = _result(alone.submit(check_shard, out, name, deep))
        yield found or CheckedShard(name, [Problem(name, "members", DIED, kind="bytes")])


DIED = "the process that checked it died: one of its files brings down a decoder"


def default_workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _result(task: "Future[CheckedShard]") -> CheckedShard | None:
    """None if its process died."""
    try:
        return task.result()
    except BrokenProcessPool:
        return None
