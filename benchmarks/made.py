"""A dataset from nowhere, of any size, and a stub in place of the models: for `benchmarks/scaling.py`."""

import copy
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pipeline.plan import Job, plan_items
from pipeline.presets import CurateConfig, ShardConfig, configure
from pipeline.sources import SOURCES
from pipeline.sources.base import DataRoot, SourceConfig
from schemas.records import Annotation, Clip, Media, Planned, Referent

if TYPE_CHECKING:  # planning is measured without what the other sections need
    from pipeline.curate import ClipResult

FRAMES, HEIGHT, WIDTH = 8, 32, 48
LINKS = 50_000
"""Hard links to one file; ext4 allows 65,000."""
BURN = "SPARROW_SCALE_BURN"
"""Environment: seconds of processor time that the stub burns for a clip. Ray hands variables of this name on."""


class MadeConfig(SourceConfig):
    clips: int = 0


class Made:
    """`clips` clips, two referents each, each of a video of its own."""

    name: ClassVar[str] = "made"
    splits: ClassVar[tuple[str, ...]] = ("train",)
    licence: ClassVar[str] = ""
    expected: ClassVar[str] = "v000000/000.mp4"
    Config = MadeConfig

    def __init__(self, config: MadeConfig | None = None):
        self.config = config or MadeConfig()

    def available(self, root: DataRoot) -> list[str]:
        return ["train"]

    def annotation_files(self, root: DataRoot, split: str) -> list[str]:
        return []

    def plan(self, root: DataRoot, split: str) -> Iterator[Planned]:
        for n in range(self.config.clips):
            name = f"made-train-{n:010d}"
            media = Media("video", video(n))
            clip = Clip(
                name,
                self.name,
                split,
                f"v{n:010d}",
                media,
                0,
                FRAMES,
                fps=10.0,
                height=HEIGHT,
                width=WIDTH,
            )
            yield Planned(
                clip,
                tuple(
                    Referent(
                        f"{name}-{k}",
                        name,
                        "the block that moves to the right",
                        ("0",),
                        "block",
                        "",
                        {"at": [n, k]},
                    )
                    for k in range(2)
                ),
            )

    def opens(self, root: DataRoot, referent: Referent) -> list[str]:
        return []

    def annotate(self, root: DataRoot, clip: Clip, referent: Referent) -> Annotation:
        boxes = np.tile(np.array([8, 8, 24, 24], np.float32), (len(clip), 1))
        return Annotation(boxes, np.ones(len(clip), bool))


def video(n: int) -> str:
    return f"v{n // 1000:06d}/{n % 1000:03d}.mp4"


def job_of(folder: Path, clips: int, out: str = "out") -> Job:
    """A job over the made source, in shards of 512 referents."""
    SOURCES[Made.name] = Made
    config = configure("lite").model_copy(update={"shard": ShardConfig(max_referents=512)})
    job = Job(
        source=Made.name,
        split="train",
        data_root=str(folder / "data"),
        out=str(folder / out),
        config=config,
    )
    return job.model_copy(update={"take": job.take.model_copy(update={"source": {"clips": clips}})})


def make_videos(root: Path, clips: int) -> None:
    from schemas.video.stored import encode_mp4

    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 255, (1, HEIGHT, WIDTH, 3), dtype=np.uint8), FRAMES, 0)
    for t in range(FRAMES):
        frames[t, 8:24, 4 + t : 20 + t] = 200
    data, first = encode_mp4(frames, 10.0), root
    for n in range(clips):
        path = root / video(n)
        if n % 1000 == 0:
            path.parent.mkdir(parents=True)
        if n % LINKS == 0:
            path.write_bytes(data)
            os.utime(path, ns=(10**18, 10**18))
            first = path
        else:
            os.link(first, path)


class Stub:
    """In place of Fused: real stages that never work, but for one pattern clip whose outcome all others copy."""

    def __init__(self, config: CurateConfig):
        from pipeline.fused import Fused

        self.stages = Fused(config).stages
        self.burn = float(os.environ.get(BURN, "0"))
        self.pattern: tuple[Planned, ClipResult] | None = None

    def load(self) -> None:
        pass

    def curate(self, planned: Planned, job: Job) -> "ClipResult":
        if self.pattern is None:
            from pipeline.curate import curate_clip

            one = next(i for i in plan_items(job) if isinstance(i, Planned))
            self.pattern = one, curate_clip(one, job, job.load(), self.stages)
        until = time.thread_time() + self.burn
        while time.thread_time() < until:
            sum(range(10_000))
        return renamed(planned, *self.pattern)


stub_of = lru_cache(maxsize=1)(Stub)


def stub(payload: tuple) -> dict:
    """flows.work.work without models."""
    from flows import work

    SOURCES[Made.name] = Made
    work.fused = stub_of  # type: ignore[assignment]
    return work.work(payload)


def renamed(planned: Planned, one: Planned, made: "ClipResult") -> "ClipResult":
    """`made`, which came of `one`, as if it had come of `planned`."""
    ids = {one.clip.clip_id: planned.clip.clip_id, one.clip.video_id: planned.clip.video_id}
    ids |= {
        a.referent_id: b.referent_id for a, b in zip(one.referents, planned.referents, strict=True)
    }
    ids[one.clip.media.path] = planned.clip.media.path

    def row(old: dict) -> dict:
        new = {k: ids.get(v, v) if isinstance(v, str) else v for k, v in old.items()}
        if "qa_id" in new:
            new["qa_id"] = new["qa_id"].replace(old["referent_id"], new["referent_id"])
        return new

    samples = [
        replace(s, key=ids[s.key], rows={t: [row(r) for r in rows] for t, rows in s.rows.items()})
        for s in made.samples
    ]
    clip_row = row(made.clip_row) if made.clip_row else None
    return replace(
        made,
        samples=samples,
        clip_row=clip_row,
        quarantine=copy.copy(made.quarantine),
        timings=[row(r) for r in made.timings],
    )


def use(work: Callable[[tuple], dict]) -> None:
    """Have the driver give its tasks to `work` instead of its own."""
    from flows import driver

    driver.fused, driver.work = stub_of, work  # type: ignore[assignment]
