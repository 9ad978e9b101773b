"""The sections of `benchmarks/scale.py`, each for a process of its own. They print a row a line, as JSON.

A made source yields clips with two referents each; a stub in place of the models copies the outcome of one real small
clip under each clip's own ids. Everything else is the real thing: plan, staging with its syncs, commit, resume,
catalogue, and on disk a video for each clip (a hard link to one of a few).
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.made import BURN, job_of, make_videos, stub, stub_of, use, video
from pipeline.plan import Job, build_plan, outlines, read_plan

if TYPE_CHECKING:  # planning is measured without what the other sections need
    import pyarrow as pa

QUERIES = {
    "count and mean IoU by origin": "SELECT origin, count(*), avg(iou) FROM {t} GROUP BY ALL",
    "dropped frames by reason": "SELECT dropped, count(*) FROM {t} WHERE NOT kept GROUP BY ALL",
    "the 20 worst tracks": "SELECT referent_id, avg(iou) AS m FROM {t} GROUP BY ALL ORDER BY m LIMIT 20",
    "one referent's track": "SELECT * FROM {t} WHERE referent_id = 'r{n:012d}'",
}


def main(section: str, size: int) -> None:
    """Run one section in a temporary folder (TMPDIR says where)."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        sections = {
            "plan": plan,
            "run": run,
            "resume": resume,
            "queries": queries,
            "ray": ray_overhead,
            "workers": workers,
        }
        sections[section](Path(folder), size)


def say(what: str, value: float, unit: str, note: str = "", **fields: Any) -> None:
    print(
        json.dumps({"what": what, "value": value, "unit": unit, "note": note, **fields}), flush=True
    )


class Timed:
    """Wall and processor seconds of a block, the latter of this process alone."""

    def __enter__(self) -> "Timed":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu


def peak() -> float:
    """Peak memory of this process so far, MiB. (What getrusage says begins with that of the parent.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


# --- sections ------------------------------------------------------------------------------------------------------


def plan(folder: Path, referents: int) -> None:
    """Planning and reading the plan back, streamed; memory is this process's, imports included."""
    build_plan(
        job_of(folder, 2, "first")
    )  # pyarrow imports pandas, where there is one, with the first table
    before, job = peak(), job_of(folder, referents // 2)
    with Timed() as made:
        counts = build_plan(job)
    size = job.plan_path.stat().st_size / 2**20
    words = f"{counts.clips:,} clips, {counts.shards:,} shards, {size:.0f} MiB on disk, processor {made.cpu:.1f} s"
    say(f"plan, {referents:,} referents", made.wall, "s", words)
    say("  a referent of it", made.cpu / referents * 1e6, "us processor")
    say("  peak memory", peak(), "MiB", f"{before:.0f} before")
    with Timed() as hashed:
        shards = sum(1 for _ in outlines(job, ""))
    say(
        "  hashes of its shards",
        hashed.wall,
        "s",
        f"{shards:,} shards, processor {hashed.cpu:.1f} s",
    )
    with Timed() as read:
        total = sum(len(shard.items) for shard in read_plan(job, ""))
    say("  read back whole", read.wall, "s", f"{total:,} clips, processor {read.cpu:.1f} s")


def run(folder: Path, referents: int) -> None:
    """A run with stub stages in one process; its parts; and the run again that finds everything done."""
    from flows import driver
    from flows.executors import Inline
    from flows.progress import Quiet
    from flows.work import one_thread

    clips, at, spent = referents // 2, list[float](), {"clip": 0.0, "commit": 0.0}
    job = job_of(folder, clips)
    make_videos(Path(job.data_root), clips)

    def timed(payload: tuple) -> dict:
        start = time.process_time()
        try:
            return stub(payload)
        finally:
            spent[payload[0]] += time.process_time() - start
            if payload[0] == "clip":
                at.append(time.process_time() - sum(spent.values()))

    use(timed)
    build_plan(job_of(folder, 2, "first"))  # as in `plan`
    with Timed() as planned:
        driver.ensure_plan(job, Quiet())
    with Timed() as first:
        driver.run([job], Inline(), Quiet())
    say(
        f"run, stub stages, {referents:,} referents",
        first.wall,
        "s",
        f"inline, {clips:,} clips, processor {first.cpu:.0f} s; planned before in {planned.cpu:.2f} s",
    )
    say(
        "  stage a clip (the stub included)",
        spent["clip"] / clips * 1e3,
        "ms processor",
        "synced to disk",
    )
    with Timed() as threads:
        for _ in range(20):
            with one_thread():
                pass
    say("    of it limiting threads", threads.cpu / 20 * 1e3, "ms processor")
    say(
        "  commit, a clip of it",
        spent["commit"] / clips * 1e3,
        "ms processor",
        "256 clips to a shard",
    )
    tenth = max(2, clips // 10)
    early, late = (
        (at[b] - at[a]) / (b - a) * 1e3 for a, b in ((0, tenth - 1), (clips - tenth, clips - 1))
    )
    say("  engine: the driver's own, a clip", early, "ms processor", "first tenth of the clips")
    say(
        "  engine: the driver's own, a clip",
        late,
        "ms processor",
        "last tenth",
        baseline="the first tenth",
        ratio=early / late,
    )
    say(
        "  after the last clip",
        first.cpu - sum(spent.values()) - at[-1] + at[0],
        "s processor",
        "index and report are of it",
    )
    with Timed() as again:
        (done,) = driver.run([job], Inline(), Quiet())
    say(
        "run again, everything done",
        again.wall,
        "s",
        f"{done.shards_skipped} shards found, processor {again.cpu:.2f} s",
    )
    say("  beside the run", again.cpu / (first.cpu + planned.cpu) * 100, "% of processor time")
    say("  beside planning", again.cpu / planned.cpu * 100, "% of processor time")
    say("peak memory", peak(), "MiB")


def resume(folder: Path, referents: int) -> None:
    """A run that finds everything done, at a size that no benchmark can run: one shard is made and committed, all
    others are copies of it under their own names, hashes and videos, as far as a resume looks."""
    from flows import driver
    from flows.executors import Inline
    from flows.progress import Quiet
    from pipeline.shards import committed, unchanged

    clips = referents // 2
    job = job_of(folder, clips)
    make_videos(Path(job.data_root), clips)
    use(stub)
    build_plan(job_of(folder, 2, "first"))  # as in `plan`
    with Timed() as planned:
        driver.ensure_plan(job, Quiet())
    make_output(job)
    with Timed() as again:
        (done,) = driver.run([job], Inline(), Quiet())
    assert (done.shards_skipped, done.clips_done) == (done.counts.shards, 0)
    say(
        f"resume, all done, {referents:,} referents",
        again.wall,
        "s",
        f"{done.shards_skipped:,} shards, {clips:,} videos, processor {again.cpu:.2f} s",
    )
    say(
        "  beside planning",
        again.cpu / planned.cpu * 100,
        "% of processor time",
        f"planned in {planned.cpu:.2f} s",
    )
    steps: dict[str, Callable[[], object]] = {
        "hashes of the plan's shards": lambda: list(outlines(job, "")),
        "what is committed": lambda: committed(Path(job.out), job),
        "the source files": lambda: all(unchanged(job, shard.name) for shard in done.shards),
        "  os.stat of each, and no more": lambda: [
            os.stat(f"{job.data_root}/{video(n)}") for n in range(clips)
        ],
    }
    for what, step in steps.items():
        with Timed() as took:
            assert step()
        say(
            f"  {what}",
            took.cpu,
            "s processor",
            f"wall {took.wall:.2f} s; {took.cpu / planned.cpu:.1%} of planning",
        )
    say("peak memory", peak(), "MiB")


def make_output(job: Job) -> None:
    """Commit the first shard of a plan, and copies of it as the others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from flows.driver import fused
    from flows.report import REPORT
    from pipeline.shards import (
        SHARD_TABLES,
        commit_shard,
        part_path,
        shard_path,
        stage_clip,
        staged_path,
    )
    from schemas.tables import write

    out, models = Path(job.out), stub_of(job.config)
    assert fused(job.config) is models  # what the run will find
    first, *others = outlines(job, models.stages.digest)
    [shard] = read_plan(job, models.stages.digest, only={first.name})
    for item in shard.clips:
        stage_clip(staged_path(out, shard, item.clip.clip_id), models.curate(item, job))
    row = commit_shard(job, shard, models.stages.encoder.dim)
    clips = pq.read_table(part_path(out, "clips", first.name), partitioning=None)
    at, start = clips.schema.get_field_index("media_path"), first.clips
    for other in others:
        for table in set(SHARD_TABLES) - {"clips"}:
            os.link(part_path(out, table, first.name), part_path(out, table, other.name))
        os.link(shard_path(out, job, first.name), shard_path(out, job, other.name))
        videos = pa.array([video(n) for n in range(start, start + other.clips)])
        mine = clips.slice(0, other.clips).set_column(at, clips.schema.field(at), videos)
        pq.write_table(mine, part_path(out, "clips", other.name), compression="zstd")
        path = str(shard_path(Path(), job, other.name))
        mark = row | {
            "path": path,
            "index": other.index,
            "plan_hash": other.hash,
            "shard": other.name,
        }
        write(part_path(out, "shards", other.name), "shards", [mark])
        start += other.clips
    for name in (REPORT, "README.md", "croissant.json"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).touch()


def ray_overhead(folder: Path, clips: int) -> None:
    """Two Ray workers whose stages take no time: what the engine costs."""
    job = job_of(folder, clips)
    make_videos(Path(job.data_root), clips)
    marks, wall = _ray(job, 2)
    tenth = max(2, clips // 10)
    say(
        f"{clips:,} clips, stub stages, 2 Ray workers",
        wall,
        "s",
        f"{clips / wall:.0f} clips/s, the start of Ray apart",
    )
    for part, (a, b) in {
        "first": (tenth // 2, tenth + tenth // 2),
        "last": (clips - tenth, clips - 1),
    }.items():
        (t0, c0), (t1, c1) = marks[a], marks[b]
        say(
            "  driver, a clip",
            (c1 - c0) / (b - a) * 1e3,
            "ms processor",
            f"{part} tenth of the clips; {(t1 - t0) / (b - a) * 1e3:.2f} ms wall",
        )


def workers(folder: Path, clips: int) -> None:
    """The same clips with one Ray worker and with two, on stages that burn 150 ms of processor time a clip."""
    burn = 0.15
    os.environ[BURN] = str(burn)
    make_videos(folder / "data", clips)
    rates = []
    for count in (1, 2):
        marks, _ = _ray(job_of(folder, clips, f"out{count}"), count)
        half = (
            clips // 2
        )  # the first clips wait for workers to start, and each worker makes its pattern
        rates.append((clips - 1 - half) / (marks[-1][0] - marks[half][0]))
        beyond = f"last half of {clips}; {(count / rates[-1] - burn) * 1e3:.1f} ms of a worker's time beyond that"
        say(
            f"{count} Ray worker{'s' * (count > 1)}, {burn * 1e3:.0f} ms a clip",
            rates[-1],
            "clips/s",
            beyond,
        )
    say("efficiency, 1 -> 2 workers", rates[1] / rates[0] / 2 * 100, "%")


def _ray(job: Job, count: int) -> tuple[list[tuple[float, float]], float]:
    """Run a job on a Ray of its own: (wall, processor of this process) as each clip ended, and seconds in all from the
    first of them."""
    from flows import driver
    from flows.executors import RayActors
    from flows.progress import Quiet

    class Watch(Quiet):
        def _changed(self, force: bool = False) -> None:
            if self.stages.get("curate", {}).get("done", 0) > len(marks):
                marks.append((time.perf_counter(), time.process_time()))

    marks: list[tuple[float, float]] = []
    use(stub)
    executor = RayActors(workers=count)
    executor.open()
    try:
        driver.run([job], executor, Watch())
    finally:
        executor.close()
    return marks, marks[-1][0] - marks[0][0]


def queries(folder: Path, rows: int) -> None:
    """DuckDB over a `tracks` table of made rows in 128 part files, with warm page cache."""
    import duckdb
    import pyarrow.parquet as pq

    from schemas.tables import schema

    place, parts, per = folder / "tracks", 128, 100
    place.mkdir()
    form, draw, each = schema("tracks"), np.random.default_rng(0), rows // parts
    with Timed() as written:
        for part in range(parts):
            data = _tracks(form, np.arange(part * each, (part + 1) * each), per, draw)
            pq.write_table(
                data,
                place / f"made-train-{part:06d}.parquet",
                compression="zstd",
                row_group_size=122_880,
            )
    size = sum(p.stat().st_size for p in place.iterdir()) / 2**20
    say(
        f"{parts * each:,} track rows on disk",
        size,
        "MiB",
        f"written in {written.wall:.0f} s, processor {written.cpu:.0f} s, peak memory {peak():.0f} MiB",
    )
    with duckdb.connect() as base:
        for what, sql in QUERIES.items():
            words, times = (
                sql.format(t=f"read_parquet('{place}/*.parquet')", n=rows // per // 2),
                [],
            )
            for _ in range(3):
                with Timed() as timed:
                    assert base.sql(words).fetchall()
                times.append(timed)
            best = sorted(times, key=lambda t: t.wall)[1]
            say(f"  {what}", best.wall, "s", f"median of 3, processor {best.cpu:.2f} s")
    say("  peak memory", peak(), "MiB")
    shutil.rmtree(place)


def _tracks(form: "pa.Schema", ids: np.ndarray, per: int, draw: np.random.Generator) -> "pa.Table":
    """Rows `ids` of tracks of `per` frames. Words are drawn as numbers, and become text in Arrow."""
    import pyarrow as pa

    n, referent = len(ids), ids // per
    first = referent[0] if n else 0
    names = range(first, referent[-1] + 1) if n else range(0)
    at = pa.array(referent - first)

    def words(choice: list[str | None], which: np.ndarray) -> pa.Array:
        return pa.array(choice).take(pa.array(which.astype(np.int32)))

    iou, kept = draw.random(n, dtype=np.float32), draw.random(n) > 0.1
    given: dict[str, Any] = {
        "referent_id": pa.array([f"r{i:012d}" for i in names], pa.string()).take(at),
        "clip_id": pa.array([f"c{i // 2:012d}" for i in names], pa.string()).take(at),
        "frame": pa.array((ids % per).astype(np.int32)),
        "source_frame": pa.array(ids % per),
        "origin": words(["tracked", "annotation"], ids % 7 == 0),
        "score": pa.array(iou),
        "iou": pa.array(iou),
        "known": pa.array(ids % 3 == 0),
        "kept": pa.array(kept),
        "dropped": words(["lost", ""], kept),
        "shard": words(["made"], np.zeros(n)),
    }
    given |= {c: pa.array(draw.random(n, dtype=np.float32) * 640) for c in ("x1", "y1", "x2", "y2")}
    columns = [given[f.name].cast(f.type) if f.name in given else pa.nulls(n, f.type) for f in form]
    return pa.Table.from_arrays(columns, schema=form)
