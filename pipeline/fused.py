"""Fused: all models of a preset in one process, many clips at once.

A GPU is busy when many clips ask it at the same time; a clip's own work (decoding, cutting crops, packing) needs a
host thread. So each clip in flight has a thread that runs `curate_clip` top to bottom, and the models gather what the
threads ask for into batches. Two things are bounded: how many clips decode at once, and how many bytes of decoded
frames are alive. Frames never leave the process. A Ray actor, a benchmark or a plain script holds one of these.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from pipeline.curate import ClipResult, curate_clip
from pipeline.plan import Job
from pipeline.presets import CurateConfig, Stages, build_stages
from pipeline.select import load_kmeans
from schemas.records import Clip, Planned

UNKNOWN_SIZE = (720, 1280)
"""Height and width assumed of clips whose annotation does not say."""


class ByteBudget:
    """At most so many bytes at once; a request larger than that waits until it is alone."""

    def __init__(self, limit: int):
        self.limit, self.used, self.peak = limit, 0, 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        with self._changed:
            while self.used and self.used + count > self.limit:
                self._changed.wait()
            self.used += count
            self.peak = max(self.peak, self.used)
        try:
            yield
        finally:
            with self._changed:
                self.used -= count
                self._changed.notify_all()


class Fused:
    """Curates clips, from any number of threads.

    decoders: clips that decode or encode at once (default: one per core)
    host_bytes: decoded frames alive at once (default: this process's share of half of the machine's memory: with
        SPARROW_WORKERS=8, which a run sets for its workers, an eighth of it. Workers on other machines count too)
    """

    def __init__(
        self, config: CurateConfig, *, decoders: int | None = None, host_bytes: int | None = None
    ):
        cores = len(os.sched_getaffinity(0))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.config = config
        self.budget = ByteBudget(
            host_bytes or memory // 2 // max(1, int(os.environ.get("SPARROW_WORKERS", 1)))
        )
        self._loading, self._loaded = threading.Lock(), False
        self.stages: Stages = replace(
            build_stages(config), loading=threading.BoundedSemaphore(decoders or cores)
        )

    def load(self) -> None:
        """Have the models ready. CheckpointError if a file does not fit: before any clip, not as the fault of each."""
        with self._loading:
            if not self._loaded:
                self.stages.load()
                load_kmeans()
                self._loaded = True

    def curate(self, planned: Planned, job: Job) -> ClipResult:
        """One clip; blocks until it is done."""
        self.load()
        with self.budget.hold(decoded_bytes(planned.clip)):
            return curate_clip(planned, job, job.load(), self.stages)

    def map(self, job: Job, clips: Iterable[Planned], in_flight: int) -> Iterator[ClipResult]:
        """Results in the order of the clips, with at most `in_flight` begun and not yet taken."""
        with ThreadPoolExecutor(in_flight, "clip") as threads:
            begun: list[Future[ClipResult]] = []
            for planned in clips:
                begun.append(threads.submit(self.curate, planned, job))
                if len(begun) == in_flight:
                    yield begun.pop(0).result()
            while begun:
                yield begun.pop(0).result()


def decoded_bytes(clip: Clip) -> int:
    """What a clip's frames will take, by its annotation."""
    height, width = clip.height or UNKNOWN_SIZE[0], clip.width or UNKNOWN_SIZE[1]
    return len(clip) * height * width * 3
