"""Verify against the source: are the pictures in the shards those of the data set?

Each clip is read again from its source by the plan's rules and compared with the pictures that the shard holds. Stored
pictures are compressed, so they are compared by their peak signal-to-noise ratio (PSNR); a clip that fits better when
it is moved by a frame holds other pictures than its boxes are about.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.contents import files_in
from schemas.members import open_regular, read_range
from schemas.parts import plan_paths

if TYPE_CHECKING:
    from manifests.verify import Problem
    from pipeline.plan import Job
    from schemas.records import Clip

LEAST_PSNR = 20.0
"""dB between a stored picture and its source. At the default quality film has 33 and more, coarse noise 24."""
BETTER = 0.8
"""A clip is moved if its mean squared error falls below this share when it is compared one frame earlier or later."""


@dataclass(slots=True)
class SourceReport:
    """What was compared. psnr: (worst, mean) in dB over all pictures; None if there were none.

    without_media: clips whose shard holds no pictures, so that nothing could be compared.
    """

    clips: int = 0
    pictures: int = 0
    without_media: int = 0
    worst: float = float("inf")
    total: float = 0.0
    problems: "list[Problem]" = field(default_factory=list)

    @property
    def psnr(self) -> tuple[float, float] | None:
        return (self.worst, self.total / self.pictures) if self.pictures else None

    def add(self, psnr_t: NDArray[np.float64]) -> None:
        """The PSNR of each picture of a clip."""
        self.clips += 1
        self.pictures += len(psnr_t)
        self.worst = min(self.worst, float(psnr_t.min()))
        self.total += float(psnr_t.sum())

    def as_dict(self) -> dict:
        """The numbers, without the problems."""
        worst, mean = self.psnr or (None, None)
        counts = {"clips": self.clips, "pictures": self.pictures}
        psnr = {"worst_psnr": worst, "mean_psnr": mean}
        return {**counts, **psnr, "without_media": self.without_media}

    def __str__(self) -> str:
        text = f"against the source: {self.clips} clips, {self.pictures:,} pictures"
        if self.psnr is not None:
            text += f", PSNR {self.psnr[0]:.1f} dB at worst, {self.psnr[1]:.1f} dB on average"
        if self.without_media:
            text += f"; {self.without_media} clips hold no pictures to compare"
        return text


def compare_with_source(
    out: Path, data_root: Path | None = None, tick: Callable[[int], None] | None = None
) -> SourceReport:
    """Read every committed clip again. data_root: where the source is now, for outputs of one source.

    ValueError if a plan or a data root is missing; what is wrong with a clip is a problem of its shard.
    """
    report = SourceReport()
    for job in _jobs(out, data_root):
        for shard, clip, data in _stored_clips(out, job):
            if tick:
                tick(1)
            if data is None:
                report.without_media += 1
                continue
            what = _compare(job, clip, *data, report)
            if what:
                report.problems.append(_problem(shard, clip, what))
    return report


def _problem(shard: str, clip: "Clip", what: str) -> "Problem":
    from manifests.verify import Problem

    return Problem(shard, clip.media.path, what, (clip.clip_id,), 1, "source")


def _jobs(out: Path, data_root: Path | None) -> "list[Job]":
    from pipeline.plan import read_plan_header

    plans = plan_paths(out)
    if not plans:
        raise ValueError(f"{out}: no plan in it says which source its clips are from")
    jobs = [read_plan_header(path)[0] for path in plans]
    sources = sorted({job.source for job in jobs})
    if data_root is not None and len(sources) > 1:
        raise ValueError(f"--data-root is for one source; here are {', '.join(sources)}")
    moved = {"out": str(out.resolve())}
    if data_root is not None:
        moved["data_root"] = str(data_root.resolve())
    jobs = [job.model_copy(update=moved) for job in jobs]
    for job in jobs:
        if not Path(job.data_root).is_dir():
            raise ValueError(
                f"{job.name}: its data root {job.data_root} is not there. Mount it, or say where it is with --data-root"
            )
    return jobs


def _stored_clips(out: Path, job: "Job") -> "Iterator[tuple[str, Clip, tuple[str, bytes] | None]]":
    """Each committed clip with its shard, and the member that holds its pictures; None if there is none."""
    import pyarrow.parquet as pq

    from pipeline.plan import read_plan
    from schemas.records import Planned

    for shard in read_plan(job, ""):
        part = out / "manifests" / "shards" / f"{shard.name}.parquet"
        if not part.is_file():
            continue
        tables = {
            table: pq.read_table(
                out / "manifests" / table / f"{shard.name}.parquet", partitioning=None
            ).to_pylist()
            for table in ("referents", "members")
        }
        owners = {row["referent_id"]: row["clip_id"] for row in tables["referents"]}
        places = {
            owners[row["key"]]: row
            for row in tables["members"]
            if row["name"] in ("mp4", "frames.tar") and row["key"] in owners
        }
        tar = out / job.source / job.split / "shards" / f"{shard.name}.tar"
        for item in shard.items:
            if isinstance(item, Planned) and item.clip.clip_id in owners.values():
                place = places.get(item.clip.clip_id)
                yield shard.name, item.clip, place and _member(tar, place)


def _member(tar: Path, place: dict) -> tuple[str, bytes]:
    with open_regular(tar) as file:
        return place["name"], read_range(file, place["offset"], place["size"], place["name"])


def _compare(job: "Job", clip: "Clip", name: str, data: bytes, report: SourceReport) -> str:
    """What is wrong with the stored pictures of a clip; empty if they are those of the source."""
    from pipeline.video import decode
    from schemas.records import Quarantined

    try:
        source = decode(job.root, clip, job.config.decode).frames
    except Quarantined as problem:
        return f"its source cannot be read any more: {problem.message}"
    errors: dict[int, list[float]] = {-1: [], 0: [], 1: []}
    height, width = source.shape[1:3]
    try:
        for t, picture in _pictures(name, data, len(clip)):
            for move, found in errors.items():
                if 0 <= t + move < len(source):
                    difference = picture[:height, :width].astype(np.float32) - source[t + move]
                    found.append(float(np.square(difference).mean()))
    except (ValueError, OSError, tarfile.TarError) as error:
        return f"its stored pictures cannot be read: {error}"
    psnr = 10 * np.log10(255**2 / np.maximum(errors[0], 1e-3))
    report.add(psnr)
    if psnr.min() < LEAST_PSNR:
        return f"frame {int(psnr.argmin())} is another picture than in the source ({psnr.min():.1f} dB)"
    for move in (-1, 1):
        if errors[move] and np.mean(errors[move]) < BETTER * np.mean(errors[0]):
            return f"its pictures fit better {abs(move)} frame {'earlier' if move < 0 else 'later'}"
    return ""


def _pictures(name: str, data: bytes, count: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    from schemas.video.pictures import decode_picture
    from schemas.video.stored import stored_pictures

    if name == "mp4":
        yield from stored_pictures(data, count=count)
        return
    files = files_in(data)
    for t in range(count):
        yield t, decode_picture(files[f"{t:06d}.jpg"])
