"""The work, in whatever process it runs: one clip, or the commit of one shard. What executors are given to do."""

import fcntl
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from flows.locks import fenced, lock_file
from flows.runlog import account
from pipeline.fused import Fused
from pipeline.plan import Job
from pipeline.presets import CurateConfig
from pipeline.shards import changed_clips, commit_shard, committed, discard, stage_clip

_THREAD = threading.local()
_BUILDING = threading.Lock()


def fused(config: CurateConfig) -> Fused:
    """The process's models for a config, made once, whoever asks first."""
    with _BUILDING:
        return _fused(config)


@lru_cache(maxsize=2)
def _fused(config: CurateConfig) -> Fused:
    return Fused(config)


@lru_cache(maxsize=1)
def _pools(modules: int) -> Any:
    """This process's libraries with thread pools. Looking for them takes milliseconds, so only when the number of
    loaded modules has changed."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS and torch's CPU kernels get one thread, so that every process computes alike. OpenMP counts per thread.

    In a process of somebody else's (inline) the limits are lifted afterwards; a worker's threads keep them.
    """
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    if threading.current_thread() is threading.main_thread():
        with _pools(len(sys.modules)).limit(limits=1):
            if torch:
                torch.set_num_threads(1)
            try:
                yield
            finally:
                if torch:
                    torch.set_num_threads(before)
        return
    if getattr(_THREAD, "limited", None) != bool(torch):
        threadpool_limits(1)
        if torch:
            torch.set_num_threads(1)
        _THREAD.limited = bool(torch)
    yield


def work(payload: tuple[str, Job, Any, Any]) -> dict:
    """One clip or one commit, from any thread; returns a few numbers.

    payload: ("clip", job, (planned, path), token) or ("commit", job, token, shard); the token is that of `locked`.
    """
    kind, job, item, shard = payload
    models = fused(job.config)
    if kind == "clip":
        models.load()
    with one_thread():
        if kind == "commit":
            out = Path(job.out)
            turn = f"{job.name}.commit{zlib.crc32(shard.name.encode()) % 64}"
            with fenced(job, item), lock_file(out, turn) as mine:
                fcntl.flock(
                    mine, fcntl.LOCK_EX
                )  # cut off from Ray's network, one taken for dead may still be at it
                try:
                    return commit_shard(job, shard, models.stages.encoder.dim)
                except (
                    FileNotFoundError
                ):  # that worker, or one that is dead, had committed it and begun to tidy up
                    if committed(out, job).get(shard.name) != shard.hash or changed_clips(
                        job, shard
                    ):
                        raise
                    discard(out, shard.name)
                    return {}
        planned, path = item
        result = models.curate(planned, job)
    with fenced(job, shard):
        size = stage_clip(Path(path), result)
    return {"samples": len(result.samples), "bytes": size, **account(result)}
