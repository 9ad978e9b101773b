"""What a run of a plan will do: counts, size, time, and what it will skip and why."""

from collections import Counter

from pipeline.others import may_be_other
from pipeline.plan import Counts, Job, plan_items
from pipeline.segment.sam2 import PUBLISHED_FRAMES_PER_SECOND, SAM2Config, pictures_seen
from pipeline.sources.base import DataRoot, Source
from pipeline.sources.hints import media_advice, refused_links
from schemas.records import Clip, Planned, Quarantined, Reason, Referent, Rejected

SECONDS_PER_FRAME = {"lite": 0.04}
"""One referent, 640x360, one core; of other presets not known. Better: `FROM stage_seconds` of a run of your own."""
PAPER_SECONDS = (0.09, 0.02)
"""Of the paper's pipeline on an A100, without masks and decoding: for a clip, and for each frame of a target."""
MASK_CHOICES = (("all", "image"), ("all", "video"), ("keyframes:8", "image"), ("none", "image"))
"""`segment.masks` and `segment.mode` whose cost is shown beside the chosen ones."""


class Forecast:
    """Looks for the files of a plan, clip by clip, while it is made.

    One picture of each clip, or its video, and all files that its annotations are in are looked for. None is opened.
    """

    def __init__(self, job: Job):
        self.job = job
        self._source, self._root = job.load(), job.root
        self._rejected: Counter[str] = Counter()  # by the plan itself
        self._dropped: Counter[str] = Counter()  # rows that curation will reject
        self._examples: dict[str, str] = {}
        self._frames = 0
        self._paper_seconds = 0.0
        segment = job.config.segment
        chosen = {(segment.masks, segment.mode)} if isinstance(segment, SAM2Config) else set()
        self._pictures = dict.fromkeys([*MASK_CHOICES, *chosen], 0) if chosen else {}
        self._with_media = 0
        self._without_media = 0
        self._alone = 0  # referents without another target to switch to
        self._refused = 0  # behind a link, or in a folder that lacks their picture

    def see(self, item: Planned | Rejected) -> None:
        """Take one item of the plan into account."""
        if isinstance(item, Planned):
            self._frames += len(item.clip) * len(item.referents)
            self._count_masks(item)
            self._look_for(item)
            self._alone += sum(
                not any(may_be_other(referent, other) for _, other in item.others)
                for referent in item.referents
            )
        else:
            self._rejected[str(item.reason)] += 1
            self._examples.setdefault(str(item.reason), item.message)

    def row(self, counts: Counts, workers: int = 1) -> dict:
        """The forecast, after all items were seen.

        `skip` has the rows that will be in quarantine, by reason, and `examples` a message of each. Where no media are
        there at all (annotations only), `media` is "none", and `quarantined` counts rows of the annotation files
        alone: the plan is then about the annotations. A picture behind a link, or with another name, is not that case.
        `alone`: for id switches, referents whose video has no other target in any of their frames, else None.
        """
        media = "some" if self._with_media else "none"
        if not self._without_media:
            media = "all"
        is_elsewhere = bool(self._refused or (media == "none" and refused_links(self._root)))
        skip = self._rejected + self._dropped
        counted = skip if media != "none" or is_elsewhere else self._rejected
        pace = SECONDS_PER_FRAME.get(self.job.config.preset)
        return {
            "source": self.job.source,
            "split": self.job.split,
            "videos": counts.videos,
            "clips": counts.clips,
            "referents": counts.referents,
            "qa": counts.qa,
            "frames": counts.frames,
            "shards": counts.shards,
            "quarantined": sum(counted.values()),
            "skip": dict(sorted(skip.items())),
            "examples": dict(sorted(self._examples.items())),
            "media": media,
            "bytes": counts.bytes,
            "seconds": None if pace is None else round(self._frames * pace / workers, 1),
            "masks": self._mask_costs(),
            "alone": self._alone if self.job.config.corrupt.kind == "id_switch" else None,
        }

    def _count_masks(self, item: Planned) -> None:
        """Pictures for SAM2, at most: as if every frame of the clip were kept, as far as the source's rules allow."""
        rules = self._source.config.rules
        if rules.masks != "segment" or not self._pictures:
            return
        n = len(item.clip)
        boxed = min(n, rules.max_kept_frames or n)
        targets = len(item.referents)
        self._paper_seconds += PAPER_SECONDS[0] + PAPER_SECONDS[1] * n * targets
        for masks, mode in self._pictures:
            self._pictures[masks, mode] += targets * pictures_seen(boxed, masks, mode)

    def _mask_costs(self) -> list[dict]:
        """What masks cost by SAM2's published speed, for each way to make them; empty for another segmenter."""
        segment = self.job.config.segment
        if not isinstance(segment, SAM2Config) or not any(self._pictures.values()):
            return []
        speed = PUBLISHED_FRAMES_PER_SECOND.get(segment.architecture)
        return [
            {
                "masks": masks,
                "mode": mode,
                "chosen": (masks, mode) == (segment.masks, segment.mode),
                "pictures": pictures,
                "gpu_hours": None if speed is None else pictures / speed / 3600,
                "paper_gpu_hours": self._paper_seconds / 3600,
            }
            for (masks, mode), pictures in self._pictures.items()
        ]

    def _look_for(self, item: Planned) -> None:
        """Look for the files of one clip as curation will: media first, then the annotation of each referent."""
        clip = item.clip
        problem = _media_problem(self._root, clip)
        if (
            len(clip) == 0
        ):  # curation asks the annotation first, and it will say which file is missing
            self._without_media += problem is not None and problem.reason == Reason.MEDIA_MISSING
            known = _annotation_problem(self._source, self._root, item.referents[0])
            message = f"{clip.clip_id}: the clip has no frames"
            self._drop(
                known or Quarantined(Reason.ANNOTATION_INVALID, message), len(item.referents)
            )
            return
        if problem is None or problem.reason not in (Reason.MEDIA_MISSING, Reason.UNSAFE_PATH):
            self._with_media += 1
        else:
            self._without_media += 1
            is_link = problem.reason == Reason.UNSAFE_PATH
            self._refused += is_link or self._root.has(clip.media.path)
        if problem is not None:
            self._drop(problem, len(item.referents))
            return
        for referent in item.referents:
            if problem := _annotation_problem(self._source, self._root, referent):
                self._drop(problem)

    def _drop(self, problem: Quarantined, rows: int = 1) -> None:
        self._dropped[str(problem.reason)] += rows
        self._examples.setdefault(str(problem.reason), problem.message)


def forecast(job: Job, counts: Counts, workers: int = 1) -> dict:
    """The forecast of a plan that was made already. It is planned once more; `Forecast` can look on instead."""
    looking = Forecast(job)
    for item in plan_items(job):
        looking.see(item)
    return looking.row(counts, workers)


def _media_problem(root: DataRoot, clip: Clip) -> Quarantined | None:
    media = clip.media
    path = media.path if media.kind == "video" else media.image(clip.start)
    problem = root.why_not(path)
    if problem is None or problem.reason != Reason.ANNOTATION_MISSING:
        return problem
    reason = Reason.MEDIA_UNREADABLE if root.has(path) else Reason.MEDIA_MISSING
    return Quarantined(reason, problem.message)


def _annotation_problem(source: Source, root: DataRoot, referent: Referent) -> Quarantined | None:
    try:
        files = source.opens(root, referent)
    except Quarantined as problem:
        return problem
    return next(filter(None, map(root.why_not, files)), None)


def plan_advice(jobs: list[Job], rows: list[dict]) -> list[str]:
    """What may help: links to follow, and where a plan did not find all media, another root or archives to unpack."""
    lines: dict[str, None] = {}
    for job, row in zip(jobs, rows, strict=True):
        lost = {Reason.UNSAFE_PATH, Reason.ANNOTATION_MISSING} & row["skip"].keys()
        lacks = row["media"] != "all" or lost
        found = media_advice(job.load(), job.root) if lacks else refused_links(job.root)
        lines.update(dict.fromkeys(found))
    return list(lines)


def settle_counts(rows: list[dict]) -> None:
    """Count what lacks media in every split, where another split of the plan has its media: then it is no plan of
    annotations alone."""
    if any(row["media"] != "none" for row in rows):
        for row in rows:
            row["quarantined"] = sum(row["skip"].values())
