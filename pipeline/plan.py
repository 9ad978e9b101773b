"""Plan: which referent goes into which shard, fixed before any work starts, and kept in one file.

A plan depends on annotations and configs alone, never on workers, on what is on disk by chance, or on what has been
done already. It is streamed: a source yields clips with pointers, rows go straight to Parquet. Rejected rows take part,
so that every shard also owns the quarantine rows of its stretch of the annotation file.
"""

import hashlib
import heapq
import json
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.corpora import Take
from pipeline.exclude import Exclude, leaving_out
from pipeline.others import MOST_OTHERS, OtherTargets
from pipeline.planfile import ROWS, SCHEMA, from_record, read_records, table, to_record
from pipeline.presets import CurateConfig
from pipeline.seen import Seen
from pipeline.sources.base import DataRoot, Source, SourceConfig, load_source
from schemas import SCHEMA_VERSION, checksum
from schemas.config import Config, canonical_json, digest
from schemas.files import replacing
from schemas.records import Clip, Planned, Reason, Referent, Rejected

BYTES_PER_PIXEL = 0.03
"""Of the mp4 in a sample (h264, crf 20), for the estimate that closes shards; measured on real clips of 1280x720."""
BYTES_PER_SAMPLE = 60_000
"""Of everything else in a sample: four crops, masks, track."""


class Job(Config):
    """All that a worker needs to know to curate one split of one source into one output."""

    source: str
    split: str
    data_root: str
    out: str
    config: CurateConfig
    take: Take = Take()
    exclude: Exclude | None = None
    follow_links: bool = False
    synthetic: bool = False

    @property
    def name(self) -> str:
        """`<source>-<split>`: what shards, parts and the plan are named by."""
        return f"{self.source}-{self.split}"

    @property
    def root(self) -> DataRoot:
        return DataRoot(self.data_root, follow_links=self.follow_links)

    def load(self) -> Source:
        return configured_source(self.source, self.take)

    def questions_per_referent(self) -> int:
        return self.config.questions.per_referent if self.take.qa is None else self.take.qa

    @property
    def plan_path(self) -> Path:
        return Path(self.out) / "plan" / f"{self.name}.parquet"


def configured_source(name: str, take: Take) -> Source:
    """The source with the corpus's overrides of its config."""
    return load_source(name, canonical_json(take.source) if take.source else "")


@dataclass(frozen=True, slots=True)
class Counts:
    """What a plan holds. `bytes` is the estimate that closes shards."""

    videos: int = 0
    clips: int = 0
    referents: int = 0
    qa: int = 0
    frames: int = 0
    rejected: int = 0
    shards: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard of a plan. `hash` covers its rows and every config: equal hash, equal bytes."""

    name: str
    index: int
    hash: str
    items: tuple[Planned | Rejected, ...]

    @property
    def clips(self) -> list[Planned]:
        return [item for item in self.items if isinstance(item, Planned)]


@dataclass(frozen=True, slots=True)
class Outline:
    """A shard of a plan without its rows: enough to tell whether it is done. clips: how many it has."""

    name: str
    index: int
    hash: str
    clips: int


def plan_items(job: Job) -> Iterator[Planned | Rejected]:
    """The source's plan for the job's split, after the caps and without what the exclude list names."""
    parts = leaving_out(job.exclude)
    for item in _capped(job):
        yield from parts(item)


def _capped(job: Job) -> Iterator[Planned | Rejected]:
    """The source's plan after the caps, which take a second pass over the annotations.

    For id switches, clips get the other targets of their video, which takes another pass.
    """
    source, root, take = job.load(), job.root, job.take
    seen = Seen()
    chosen = _choose(source, root, job.split, take)
    noise = job.config.corrupt
    targets = None
    if noise.kind == "id_switch":
        targets = OtherTargets(source.plan(root, job.split), noise.seed)
    for item in source.plan(root, job.split):
        if isinstance(item, Rejected):
            yield item
            continue
        if not seen.add(item.clip.clip_id):
            message = f"{item.clip.clip_id} appears twice in the annotations; the first one is kept"
            yield Rejected(job.source, job.split, item.clip.clip_id, Reason.DUPLICATE, message)
            continue
        referents = _few_objects(item.referents, take)
        if chosen is not None:
            referents = tuple(r for r in referents if r.referent_id in chosen)
        if referents:
            kept = item if referents is item.referents else replace(item, referents=referents)
            yield targets.attach(kept) if targets else kept


def _few_objects(referents: tuple[Referent, ...], take: Take) -> tuple[Referent, ...]:
    if take.max_objects is None:
        return referents
    return tuple(r for r in referents if len(r.object_ids) <= take.max_objects)


def _choose(source: Source, root: DataRoot, split: str, take: Take) -> set[str] | None:
    """Referents inside the caps: clips in the order of a seeded hash, then their referents, one of each clip first."""
    if take.max_clips is None and take.max_referents is None:
        return None

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{take.seed} {name}".encode()).digest()

    clips: list[tuple[bytes, tuple[str, ...]]] = []
    for item in source.plan(root, split):
        if isinstance(item, Planned) and (referents := _few_objects(item.referents, take)):
            clips.append((rank(item.clip.clip_id), tuple(r.referent_id for r in referents)))
    if take.max_clips is not None:
        clips = heapq.nsmallest(take.max_clips, clips)
    ranked = [
        (place, rank(referent), referent)
        for _, referents in clips
        for place, referent in enumerate(sorted(referents, key=rank))
    ]
    if take.max_referents is not None:
        ranked = heapq.nsmallest(take.max_referents, ranked)
    return {referent for _, _, referent in ranked}


def estimate_bytes(clip: Clip, referents: int, config: CurateConfig) -> int:
    """Expected size of a clip's samples."""
    pixels = (clip.height or 360) * (clip.width or 640) * len(clip)
    media = {"mp4": BYTES_PER_PIXEL, "frames": 8 * BYTES_PER_PIXEL, "none": 0.0}[config.media.media]
    return referents * int(pixels * media + BYTES_PER_SAMPLE)


def build_plan(
    job: Job,
    *,
    tick: Callable[[int], None] | None = None,
    watch: Callable[[Planned | Rejected], None] | None = None,
    save: bool = True,
) -> Counts:
    """Plan a split and, with `save`, write it to `<out>/plan/` in one atomic step. watch: called with every item."""
    limit, totals = job.config.shard, dict.fromkeys(Counts.__dataclass_fields__, 0)
    shard = held = held_bytes = 0
    videos = Seen()
    path = job.plan_path
    rows: list[tuple[int, str, str]] = []
    with replacing(path) if save else nullcontext() as temporary, ExitStack() as stack:
        writer = None
        if temporary:
            writer = pq.ParquetWriter(temporary, SCHEMA, compression="zstd")
            stack.callback(writer.close)
        parts = leaving_out(job.exclude)
        for n, whole in enumerate(_capped(job)):
            if isinstance(
                whole, Planned
            ):  # shards close as if nothing were excluded: the others stay as they are
                size = estimate_bytes(whole.clip, len(whole.referents), job.config)
                if held and (
                    held + len(whole.referents) > limit.max_referents
                    or held_bytes + size > limit.max_bytes
                ):
                    shard, held, held_bytes = shard + 1, 0, 0
                held, held_bytes = held + len(whole.referents), held_bytes + size
            for item in parts(whole):
                if isinstance(item, Planned):
                    videos.add(item.clip.video_id)
                    totals["clips"] += 1
                    totals["referents"] += len(item.referents)
                    totals["frames"] += len(item.clip)
                    totals["bytes"] += estimate_bytes(item.clip, len(item.referents), job.config)
                else:
                    totals["rejected"] += 1
                if watch:
                    watch(item)
                if writer:
                    rows.append((shard, *to_record(item)))
            if writer and len(rows) >= ROWS:
                writer.write_table(table(rows))
                rows.clear()
            if tick and n % 64 == 0:
                tick(n)
        totals["shards"] = shard + 1 if totals["clips"] or totals["rejected"] else 0
        totals["videos"], totals["qa"] = (
            len(videos),
            totals["referents"] * job.questions_per_referent(),
        )
        counts = Counts(**totals)
        if writer and temporary:
            writer.write_table(table(rows))
            metadata = {
                "job": job.model_dump_json(),
                "identity": plan_identity(job),
                "counts": canonical_json(asdict(counts)),
            }
            checksum.add_metadata(writer, metadata)
            writer.close()
            checksum.stamp(temporary)
    return counts


def plan_identity(job: Job) -> str:
    """Changes when the plan's rows would: with annotation files (size, mtime), the source's config, caps, limits, the
    exclude list, and with the other targets that id switches need."""
    source: Source = job.load()
    files = []
    for relative in source.annotation_files(job.root, job.split):
        stat = job.root.stat(relative)
        if stat is not None:  # a link that may not be followed: `annotate` will say so
            files.append([relative, stat.st_size, stat.st_mtime_ns])
    config: SourceConfig = source.config
    limit, media = job.config.shard.digest(), job.config.media.media
    decides = [SCHEMA_VERSION, config.digest(), job.take.digest(), limit, media, files]
    # Without a list and without others the identity is that of plans from before there were any.
    if job.exclude:
        decides.append(job.exclude.digest())
    noise = job.config.corrupt
    if noise.kind == "id_switch":
        decides.append(["others", noise.seed, MOST_OTHERS])
    return digest(decides)


def read_plan_header(path: Path) -> tuple[Job, str, Counts]:
    """The job that a plan file was made for, its identity, and its counts. ValueError if the file is damaged."""
    if why := checksum.why_damaged(path):
        raise ValueError(f"{path}: {why}")
    metadata = pq.read_metadata(path).metadata
    counts = Counts(**json.loads(metadata[b"counts"]))
    return Job.model_validate_json(metadata[b"job"]), metadata[b"identity"].decode(), counts


def read_plan(
    job: Job, stages_digest: str, *, only: Container[str] | None = None
) -> Iterator[ShardPlan]:
    """The shards of a saved plan, one at a time, in order. only: names; of others no rows are read or parsed."""
    base = _base(job, stages_digest)
    for index, records in read_records(job.plan_path, _wanted(job, only)):
        items = tuple(from_record(kind, record) for kind, record in records)
        yield ShardPlan(_name(job, index), index, digest([base, records]), items)


def outlines(job: Job, stages_digest: str) -> Iterator[Outline]:
    """What `read_plan` yields, without the rows: they are hashed and not parsed, which takes a tenth of the time."""
    base = _base(job, stages_digest)
    for index, records in read_records(job.plan_path):
        clips = sum(kind == "clip" for kind, _ in records)
        yield Outline(_name(job, index), index, digest([base, records]), clips)


def _name(job: Job, index: int) -> str:
    return f"{job.name}-{index:06d}"


def _base(job: Job, stages_digest: str) -> list:
    """All that decides a shard's bytes beside its rows."""
    return [
        SCHEMA_VERSION,
        stages_digest,
        job.config.digest(),
        job.take.qa,
        job.load().config.digest(),
    ]


def _wanted(job: Job, only: Container[str] | None) -> Callable[[int], bool] | None:
    return None if only is None else lambda index: _name(job, index) in only


def left_out(job: Job) -> set[str]:
    """The ids, of referents and of their clips, that the saved plan left out because of the exclude list."""
    rejected = pq.read_table(
        job.plan_path, columns=["record"], filters=[("kind", "==", "rejected")]
    )
    rows = [
        row
        for row in map(json.loads, rejected["record"].to_pylist())
        if row["reason"] == Reason.EXCLUDED
    ]
    return {row["item"] for row in rows} | {row["referent_id"] for row in rows}
