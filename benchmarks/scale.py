"""Scale: plan, commit and resume with stub stages, and queries over many track rows.

A made source yields clips with two referents each; a stub in place of the models copies the outcome of one real small
clip under each clip's own ids. Everything else is the real thing: plan, staging with its syncs, commit, resume,
catalogue. SCALE_REFERENTS and SCALE_PLAN (referents of the run, of the plan alone) set the size.
"""

import copy
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import Row, Setting, moving_clip
from flows import driver
from flows.executors import Inline
from flows.progress import Quiet
from pipeline.curate import ClipResult, curate_clip
from pipeline.fused import Fused
from pipeline.plan import Job, build_plan, plan_items, read_plan
from pipeline.presets import CurateConfig, ShardConfig, configure
from pipeline.sources import SOURCES
from pipeline.sources.base import DataRoot, SourceConfig
from pipeline.video import encode_mp4
from schemas.records import Annotation, Clip, Media, Planned, Referent
from schemas.tables import schema

FRAMES = 8
QUERIES = {
    "count and mean IoU by origin": "SELECT origin, count(*), avg(iou) FROM {t} GROUP BY ALL",
    "share of frames kept, by drop reason": "SELECT dropped, count(*) FROM {t} WHERE NOT kept GROUP BY ALL",
    "the 20 worst tracks": "SELECT referent_id, avg(iou) AS m FROM {t} GROUP BY ALL ORDER BY m LIMIT 20",
    "one referent's track": "SELECT * FROM {t} WHERE referent_id = 'r{n:012d}'",
}


class MadeConfig(SourceConfig):
    clips: int = 0


class Made:
    """Clips from nowhere: `clips` of them, two referents each, all of one small video."""

    name: ClassVar[str] = "made"
    splits: ClassVar[tuple[str, ...]] = ("train",)
    licence: ClassVar[str] = ""
    expected: ClassVar[str] = "video.mp4"
    Config = MadeConfig

    def __init__(self, config: MadeConfig | None = None):
        self.config = config or MadeConfig()

    def available(self, root: DataRoot) -> list[str]:
        return ["train"]

    def annotation_files(self, root: DataRoot, split: str) -> list[str]:
        return []

    def plan(self, root: DataRoot, split: str) -> Iterator[Planned]:
        media = Media("video", "video.mp4")
        for n in range(self.config.clips):
            name = f"made-train-{n:010d}"
            clip = Clip(name, self.name, split, f"v{n:010d}", media, 0, FRAMES, fps=10.0, height=32, width=48)
            yield Planned(clip, tuple(
                Referent(f"{name}-{k}", name, "the block that moves to the right", ("0",), "block", "", {"at": [n, k]})
                for k in range(2)
            ))  # fmt: skip

    def annotate(self, root: DataRoot, clip: Clip, referent: Referent) -> Annotation:
        boxes = np.tile(np.array([8, 8, 24, 24], np.float32), (len(clip), 1))
        return Annotation(boxes, np.ones(len(clip), bool))


def job_of(folder: Path, referents: int, out: str) -> Job:
    """A job over the made source, in shards of 512 referents; writes its one video."""
    SOURCES[Made.name] = Made
    config = configure("lite").model_copy(update={"shard": ShardConfig(max_referents=512)})
    folder.mkdir(exist_ok=True)
    if not (folder / "video.mp4").exists():
        (folder / "video.mp4").write_bytes(encode_mp4(moving_clip(FRAMES, 32, 48), 10.0))
    job = Job(source=Made.name, split="train", data_root=str(folder), out=str(folder / out), config=config)
    return job.model_copy(update={"take": job.take.model_copy(update={"source": {"clips": referents // 2}})})


class Stub:
    """In place of Fused: real stages that never work, but for one pattern clip whose outcome all others copy."""

    def __init__(self, config: CurateConfig):
        self.stages = Fused(config).stages
        self.pattern: tuple[Planned, ClipResult] | None = None

    def load(self) -> None:
        pass

    def curate(self, planned: Planned, job: Job) -> ClipResult:
        if self.pattern is None:
            one = next(i for i in plan_items(job) if isinstance(i, Planned))
            self.pattern = one, curate_clip(one, job, job.load(), self.stages)
        return renamed(planned, *self.pattern)


_stub = lru_cache(maxsize=1)(Stub)
_work, _fused = driver.work, driver.fused


def stub(payload: tuple) -> dict:
    """driver.work without models."""
    SOURCES[Made.name] = Made
    driver.fused = _stub  # type: ignore[assignment]
    return _work(payload)


def renamed(planned: Planned, one: Planned, made: ClipResult) -> ClipResult:
    """`made`, which came of `one`, as if it had come of `planned`."""
    ids = {one.clip.clip_id: planned.clip.clip_id, one.clip.video_id: planned.clip.video_id}
    ids |= {a.referent_id: b.referent_id for a, b in zip(one.referents, planned.referents, strict=True)}

    def row(old: dict) -> dict:
        new = {k: ids.get(v, v) if isinstance(v, str) else v for k, v in old.items()}
        if "qa_id" in new:
            new["qa_id"] = new["qa_id"].replace(old["referent_id"], new["referent_id"])
        return new

    samples = [
        replace(s, key=ids[s.key], rows={t: [row(r) for r in rows] for t, rows in s.rows.items()}) for s in made.samples
    ]
    clip_row = row(made.clip_row) if made.clip_row else None
    return ClipResult(samples, clip_row, copy.copy(made.quarantine), [row(r) for r in made.timings])


class Timed:
    """Wall and processor seconds of a block, the latter of this process alone."""

    def __enter__(self) -> "Timed":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu


def peak() -> float:
    """Peak memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(setting: Setting) -> Iterator[Row]:
    small = 512 if setting.quick else 100_000
    referents = int(os.environ.get("SCALE_REFERENTS", small))
    planned = int(os.environ.get("SCALE_PLAN", small if setting.quick else 1_000_000))
    rows = int(os.environ.get("SCALE_ROWS", 100_000 if setting.quick else 10_000_000))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        yield from plan(place, planned)
        yield from engine(place, referents)
        yield from queries(place, rows)


def plan(folder: Path, referents: int) -> Iterator[Row]:
    """Planning and reading the plan back, streamed; memory is this process's, imports included."""
    before, job = peak(), job_of(folder / "plan", referents, "out")
    with Timed() as made:
        counts = build_plan(job)
    size = job.plan_path.stat().st_size / 2**20
    note = f"{counts.shards:,} shards, file of {size:.0f} MiB, processor {made.cpu:.1f} s"
    yield Row(f"plan, {referents:,} referents", made.wall, "s", note=note)
    yield Row("  a referent of it", made.cpu / referents * 1e6, "us processor")
    yield Row("  peak memory", peak(), "MiB", note=f"{before:.0f} before")
    with Timed() as read:
        total = sum(len(shard.items) for shard in read_plan(job, ""))
    yield Row("read the plan back", read.wall, "s", note=f"{total:,} clips, processor {read.cpu:.1f} s")


def engine(folder: Path, referents: int) -> Iterator[Row]:
    """A run with stub stages in one process; its parts; and the run again that finds everything done."""
    job = job_of(folder / "engine", referents, "out")
    clips, at = referents // 2, list[tuple[float, int]]()
    spent = {"clip": 0.0, "commit": 0.0}

    def timed(payload: tuple) -> dict:
        start = time.process_time()
        try:
            return stub(payload)
        finally:
            spent[payload[0]] += time.process_time() - start
            if payload[0] == "clip":
                at.append((time.process_time() - sum(spent.values()), len(at)))

    with swapped(timed), Timed() as first:
        driver.run([job], Inline(), Quiet())
    yield Row(f"run, stub stages, {referents:,} referents", first.wall, "s",
              note=f"inline, {clips:,} clips, processor {first.cpu:.0f} s")  # fmt: skip
    yield Row("  stage a clip (the stub included)", spent["clip"] / clips * 1e3, "ms processor", note="synced to disk")
    yield Row("  commit, a clip of it", spent["commit"] / clips * 1e3, "ms processor", note="256 clips to a shard")
    tenth = max(1, clips // 10)
    early, late = ((at[b][0] - at[a][0]) / (b - a) * 1e3 for a, b in ((0, tenth), (clips - tenth - 1, clips - 1)))
    yield Row("  engine: the driver's own, a clip", early, "ms processor", note="first tenth of the clips")
    yield Row(
        "  engine: the driver's own, a clip", late, "ms processor", "the first tenth", early / late, note="last tenth"
    )
    yield Row("  after the last clip", first.cpu - sum(spent.values()) - at[-1][0] + at[0][0], "s processor",
              note="plan, index and report are of it")  # fmt: skip
    with swapped(timed), Timed() as again:
        (run_,) = driver.run([job], Inline(), Quiet())
    yield Row("run again, everything done", again.wall, "s", "the first run", first.wall / again.wall,
              note=f"{run_.shards_skipped} shards found, processor {again.cpu:.1f} s = "
                   f"{again.cpu / first.cpu:.1%} of the first run's")  # fmt: skip
    yield Row("peak memory of the driver", peak(), "MiB")


def queries(folder: Path, rows: int) -> Iterator[Row]:
    """DuckDB over a `tracks` table of made rows in 128 part files, with warm page cache."""
    place, parts, per = folder / "tracks", 128, 100
    place.mkdir()
    form, draw, each = schema("tracks"), np.random.default_rng(0), rows // parts
    with Timed() as written:
        for part in range(parts):
            ids = np.arange(part * each, (part + 1) * each)
            pq.write_table(_tracks(form, ids, per, draw), place / f"made-train-{part:06d}.parquet", compression="zstd")
    size = sum(p.stat().st_size for p in place.iterdir()) / 2**20
    yield Row(f"{parts * each:,} track rows on disk", size, "MiB", note=f"written in {written.wall:.0f} s")
    with duckdb.connect() as base:
        table = f"read_parquet('{place}/*.parquet')"
        for what, sql in QUERIES.items():
            words, times = sql.format(t=table, n=each // per), []
            for _ in range(3):
                with Timed() as timed:
                    base.sql(words).fetchall()
                times.append(timed)
            best = sorted(times, key=lambda t: t.wall)[1]
            yield Row(f"  {what}", best.wall, "s", note=f"median of 3, processor {best.cpu:.2f} s")


def _tracks(form: pa.Schema, ids: np.ndarray, per: int, draw: np.random.Generator) -> pa.Table:
    """Rows `ids` of tracks of `per` frames."""
    n, referent = len(ids), ids // per
    iou, kept = draw.random(n, dtype=np.float32), draw.random(n) > 0.1
    given: dict[str, Any] = {
        "referent_id": [f"r{i:012d}" for i in referent], "clip_id": [f"c{i // 2:012d}" for i in referent],
        "frame": (ids % per).astype(np.int32), "source_frame": ids % per,
        "origin": np.where(ids % 7 == 0, "annotation", "tracked"), "score": iou, "iou": iou, "kept": kept,
        "known": ids % 3 == 0, "dropped": [None if k else "lost" for k in kept], "shard": ["made"] * n,
    }  # fmt: skip
    given |= {c: draw.random(n, dtype=np.float32) * 640 for c in ("x1", "y1", "x2", "y2")}
    columns = [
        pa.array(given[f.name]).cast(f.type) if f.name in given else pa.nulls(n, f.type) for f in form
    ]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=form)


class swapped:
    """`with swapped(work)`: the driver gives its tasks to `work` instead of its own."""

    def __init__(self, work: Callable[[tuple], dict]):
        self.work = work

    def __enter__(self) -> None:
        driver.work = self.work  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        driver.work, driver.fused = _work, _fused
