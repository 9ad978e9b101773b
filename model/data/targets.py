"""What the manifests say of a video's targets: who else is in it, and what noise curation put on their trajectories."""

from dataclasses import dataclass

import pyarrow as pa

from pipeline.others import MOST_OTHERS

NOISE_COLUMNS = (
    "corruption",
    "corruption_level",
    "n_corrupted",
    "n_corruptible",
    "n_switchable",
)
"""Of `manifests/referents`."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise on the trajectories that TSF was made of (Table 10), over all referents.

    level: as it was asked for. Of `corruptible` frames, `corrupted` were changed. alone: referents, of `referents`, with
    no other target to switch to.
    """

    kind: str
    level: float
    corrupted: int
    corruptible: int
    alone: int
    referents: int

    @property
    def achieved(self) -> float:
        """Share of frames that were changed."""
        return self.corrupted / max(self.corruptible, 1)

    def __str__(self) -> str:
        changed = f"{self.achieved:.1%} of {self.corruptible:,} frames changed"
        text = f"noise on TSF trajectories: {self.kind} {self.level:g}, {changed}"
        if self.kind == "id_switch":
            text += f"; {self.alone:,} of {self.referents:,} referents have no other target"
        return text


def noise_of(referents: pa.Table) -> Noise:
    """The noise of all referents together. ValueError if they were curated with different noise."""
    names = referents["corruption"].to_pylist()
    levels = referents["corruption_level"].to_pylist()
    settings = {(name or "none", level or 0.0) for name, level in zip(names, levels, strict=True)}
    if len(settings) > 1:
        words = ", ".join(f"{name} {level:g}" for name, level in sorted(settings))
        raise ValueError(
            f"referents were curated with different noise on their trajectories ({words}); "
            "train on an output of its own for each"
        )
    [(kind, level)] = settings or {("none", 0.0)}
    corrupted, corruptible = (
        sum(count or 0 for count in referents[name].to_pylist())
        for name in ("n_corrupted", "n_corruptible")
    )
    switchable = referents["n_switchable"].to_pylist()
    alone = sum(count == 0 for count in switchable)
    return Noise(kind, level, corrupted, corruptible, alone, len(switchable))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a target is: (source, video), clip, source frames from `start` below `stop`, objects."""

    video: tuple[str, str]
    clip: str
    start: int
    stop: int
    objects: frozenset[str]


class Targets:
    """The targets of the referents in a table, by its rows."""

    def __init__(self, referents: pa.Table):
        names = ("source", "video_id", "clip_id", "start", "stop", "object_ids")
        columns = (referents[name].to_pylist() for name in names)
        self._places = [
            _Place((source, video), clip, start, stop, frozenset(objects or ()))
            for source, video, clip, start, stop, objects in zip(*columns, strict=True)
        ]
        self._videos: dict[tuple[str, str], list[int]] = {}
        for row, place in enumerate(self._places):
            self._videos.setdefault(place.video, []).append(row)

    def others(self, row: int) -> list[int]:
        """Rows of other targets of the same video: in this clip, or in one that shares frames with it.

        They share no object with this one. One row for each target and clip, at most MOST_OTHERS, those of this clip
        first.
        """
        mine = self._places[row]
        same_clip: dict[object, int] = {}
        elsewhere: dict[object, int] = {}
        for other in self._videos[mine.video]:
            place = self._places[other]
            overlaps = max(mine.start, place.start) < min(mine.stop, place.stop)
            if other == row or not overlaps or not mine.objects.isdisjoint(place.objects):
                continue
            group = same_clip if place.clip == mine.clip else elsewhere
            group.setdefault((place.clip, place.objects or other), other)
        return [*same_clip.values(), *elsewhere.values()][:MOST_OTHERS]
