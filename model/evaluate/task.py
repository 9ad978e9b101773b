"""The words of evaluation: a video, a query about it, a prediction, and a benchmark that scores predictions. No torch.

A benchmark is one file of `model/evaluate/benchmarks`: the official layout and the official score of one dataset. How
a model is asked is a protocol (`model.evaluate.protocols`), running it is `model.evaluate.run`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from model.metrics import Interval
from pipeline.sources.base import DataRoot
from pipeline.video import DecodeConfig, decode
from schemas.records import Clip, Media, Quarantined

Frames = NDArray[np.uint8]
"""[T, H, W, 3] RGB."""

COUNT_TOLERANCE = 0.02
"""Share of a video's frames by which the annotation may count otherwise; more, and it is another video."""
SAME_SHAPE = 0.03
"""By how much width / height may differ from the annotation where pictures are resized: rounding, not a turned video."""
_NAME = re.compile(r"[A-Za-z0-9_-]+")


def checked_name(name: object, what: str) -> str:
    """`name` if result folders and files may be called so ([A-Za-z0-9_-]+), else ValueError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r:.100}: results are saved under this name, so it may hold letters, digits, "
            "_ and - only; the annotation file is damaged or not the official one"
        )
    return name


@dataclass(frozen=True)
class Video:
    """What a model looks at: a video, or the part of it that the benchmark asks about.

    id: the name of its results' folder. frames: names of its frames and of result files, without extension. size:
    (height, width) of what `read` gives, if the annotation says so. root, media, pick: where the pixels are; pick:
    numbers of the frames in `media`, all of them if None. resized: `read` resizes to `size`, as the released script
    does, so that masks have that size. count: frames that the whole video has by the annotation.
    """

    id: str
    frames: tuple[str, ...]
    size: tuple[int, int] | None
    root: DataRoot = field(repr=False, compare=False)
    media: Media = field(repr=False)
    pick: tuple[int, ...] | None = field(default=None, repr=False)
    resized: bool = False
    count: int | None = None

    def __post_init__(self) -> None:
        checked_name(self.id, "video")
        for name in self.frames:
            checked_name(name, f"video {self.id}: frame")

    def __len__(self) -> int:
        return len(self.frames)

    def read(self) -> Frames:
        """All frames [T, H, W, 3] uint8 RGB. ValueError with video, file and reason where they cannot be had."""
        if not self.frames:
            raise ValueError(
                f"video {self.id}: no frames found in {self.media.path} under {self.root.path}"
            )
        wanted = self.pick or tuple(range(len(self)))
        clip = _Picked(
            self.id,
            "",
            "",
            self.id,
            self.media,
            wanted[0],
            wanted[-1] + 1,
            wanted=wanted,
            frame_count=self.count,
            frame_tolerance=round(COUNT_TOLERANCE * (self.count or 0)),
        )
        try:
            frames = decode(self.root, clip, DecodeConfig()).frames
        except Quarantined as problem:
            raise ValueError(
                f"video {self.id}: {problem.message} (under {self.root.path})"
            ) from problem
        if self.size is None or frames.shape[1:3] == self.size:
            return frames
        height, width = self.size
        shape = frames.shape[2] * height / (frames.shape[1] * width)
        if not self.resized or abs(shape - 1) > SAME_SHAPE:
            raise ValueError(
                f"video {self.id}: {self.media.path} has frames of {frames.shape[1]}x{frames.shape[2]}, the annotation "
                f"says {height}x{width}{' after resizing' * self.resized}: another video, or a turned one"
            )
        resized = [
            cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames
        ]
        return np.stack(resized).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Picked(Clip):
    """A clip of any frames, not of every n-th one."""

    wanted: tuple[int, ...] = ()

    @property
    def source_frames(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.wanted


@dataclass(frozen=True)
class Query:
    """One question about a video.

    id: unique within the video, [A-Za-z0-9_-]+; the name of its results' folder. text: as in the annotation.
    kind: "expression" (a phrase), "declarative" or "interrogative" (VidSTG), "gcg" (describe, and segment all of it),
    "region" (a question about the target that `crops` show; the answer is text).
    group: the annotator (Ref-DAVIS17) or the source (VideoGCG, VidSTG). fault: why it cannot be asked, for what is
    wrong with the annotation; such a query is not scored.
    """

    id: str
    video: str
    text: str
    kind: str = "expression"
    group: str = ""
    fault: str = ""
    crops: tuple[Frames, ...] = field(default=(), repr=False, compare=False)
    """Pictures [h, w, 3] of the target, for its TSF tokens."""

    def __post_init__(self) -> None:
        checked_name(self.id, f"video {self.video}: query")


@dataclass
class Prediction:
    """What a model answered to one query.

    masks_nthw: one track per instance or segment, in the size of `Video.read`; N may be 0. text: what it said.
    phrases: the phrase of each track ("gcg"). error: why there is no answer.
    """

    masks_nthw: NDArray[np.bool_]
    text: str = ""
    phrases: tuple[str, ...] = ()
    scores_n: NDArray[np.floating] | None = None
    error: str = ""


Row = dict[str, Any]
"""One query's scores, flat: "video", "query", "group", "kind", "error", "unscored", and the benchmark's own columns.

error: why the model gave no answer, which scores zero. unscored: what is wrong with the annotation, so that there is
no score; the columns are None then, and means leave the row out.
"""


class Benchmark(Protocol):
    """Official layout and official score of one split of a dataset."""

    name: str
    split: str
    headline: tuple[str, ...]
    """Keys of `summary` that the paper's table has, in its order."""
    settings: dict[str, str]
    """What decides the score beside the data, for tables: numbers with different settings do not compare."""

    @property
    def scored(self) -> bool:
        """False where the truth is not at hand: then only an archive can be made."""
        ...

    @property
    def truth_places(self) -> tuple[str, ...]:
        """Where under the root the truth is looked for; none where its owners do not publish it."""
        ...

    def videos(self) -> list[Video]: ...

    def queries(self, video: Video) -> list[Query]: ...

    def score(self, video: Video, predictions: Mapping[str, Prediction]) -> list[Row]:
        """A row per query, in order; predictions by query id. A missing or failed one gets the benchmark's zero.

        A query whose truth cannot be read is unscored, with the reason, and costs no other. Raises ValueError for
        masks that are not [N, T, H, W] of the video.
        """
        ...

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The benchmark's numbers from the rows of all videos; ValueError without rows."""
        ...

    def intervals(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
        """95 % bounds of those headline numbers that are means over queries or ratios of sums. Whole videos are drawn
        (`model.metrics.bootstrap`): questions about one video are not independent."""
        ...
