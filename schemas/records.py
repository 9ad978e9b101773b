"""The records that travel through the pipeline: clip, referent, annotation, track, sample, and the two ways to fail.

Time: `source_frame` counts frames of the original video from 0, `frame` counts frames of the clip from 0. Everything
that has one entry per frame of the clip is called `[T]`.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.geometry import RLE, Boxes, absent, is_box

KEY = re.compile(r"[a-z0-9_-]+")
"""What a clip id, a referent id and a shard member key look like: no dot, no slash, safe in a tar and in a URL."""


class Reason(StrEnum):
    """Why a clip or a referent is in quarantine. The message beside it has the particulars."""

    MALFORMED_ROW = "malformed_row"  # an annotation row that cannot be read
    DUPLICATE = "duplicate"  # an id that the same annotation has used already
    KNOWN_BAD = "known_bad"  # listed by the dataset's maintainers or users as wrong
    EXCLUDED = "excluded"  # on the list of `--exclude`
    MEDIA_MISSING = "media_missing"
    MEDIA_UNREADABLE = "media_unreadable"
    FRAME_MISMATCH = "frame_mismatch"  # decoded frames and annotation do not line up
    ANNOTATION_MISSING = "annotation_missing"
    ANNOTATION_INVALID = "annotation_invalid"
    UNSAFE_PATH = "unsafe_path"  # a path that leaves the data root
    TOO_LARGE = "too_large"
    NO_TARGET = "no_target"  # no usable box in any frame
    NO_OBJECT = "no_object"  # the expression is about nothing in the video, and its dataset says so
    NO_DETECTION = "no_detection"
    DISAGREES = "disagrees"  # every tracked frame fell below the IoU threshold
    LOW_QUALITY = "low_quality"  # below a rule of the source's config for samples
    DEADLINE = "deadline"  # took longer than the item deadline
    WORKER_DIED = "worker_died"  # its worker process died on it, several times
    STAGE_ERROR = "stage_error"  # any other exception, with its class


RETRYABLE = frozenset(
    {
        Reason.MEDIA_MISSING,
        Reason.MEDIA_UNREADABLE,
        Reason.ANNOTATION_MISSING,
        Reason.DEADLINE,
        Reason.WORKER_DIED,
    }
)
"""Reasons that a second run may cure: files come back, machines recover. The others need another config or new data."""


class Quarantined(Exception):
    """Raised by a source or a stage to drop one clip or one referent, and nothing else, for a stated reason."""

    def __init__(self, reason: Reason, message: str, *, stage: str = "ingest"):
        super().__init__(message)
        self.reason, self.message, self.stage = reason, message, stage

    def __reduce__(self) -> tuple:  # keeps its fields across process boundaries
        return _quarantined, (self.reason, self.message, self.stage)


def _quarantined(reason: Reason, message: str, stage: str) -> Quarantined:
    return Quarantined(reason, message, stage=stage)


@dataclass(frozen=True, slots=True)
class Media:
    """Where a clip's pixels are: a video file, or a folder of images. Paths are relative to the data root.

    Images are named by `pattern % (first + source_frame)`, or by `names[source_frame]` where numbering has gaps.
    """

    kind: Literal["video", "frames"]
    path: str
    pattern: str = ""
    first: int = 0
    names: tuple[str, ...] | None = None

    def image(self, source_frame: int) -> str:
        """Relative path of one image of a frame folder."""
        name = (
            self.names[source_frame]
            if self.names is not None
            else self.pattern % (self.first + source_frame)
        )
        return f"{self.path}/{name}"


@dataclass(frozen=True, slots=True)
class Clip:
    """A span of frames of one video: source frames `start, start + step, ...` below `stop`.

    frame_count: frames that the whole video has according to the annotation, where it says so; a decoder that finds
    another number (beyond `frame_tolerance`) means that boxes and pictures do not line up. frame_tolerance: pictures
    that may be missing at the end, or be more; what is missing elsewhere is never tolerated.
    """

    clip_id: str
    source: str
    split: str
    video_id: str
    media: Media
    start: int
    stop: int
    step: int = 1
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    frame_count: int | None = None
    frame_tolerance: int = 0
    licence: str = ""

    @property
    def source_frames(self) -> range:
        return range(self.start, self.stop, self.step)

    def __len__(self) -> int:
        return len(self.source_frames)


@dataclass(frozen=True, slots=True)
class Referent:
    """One expression about one target (several objects in MeViS) of one clip: the unit of curation.

    pointer: where the source finds this referent's annotation again (a file, a byte range, an object index; JSON
    values only). Planning keeps pointers, never annotations, so a plan of any size fits in memory.
    """

    referent_id: str
    clip_id: str
    caption: str
    object_ids: tuple[str, ...] = ()
    category: str = ""
    raw_caption: str = ""
    pointer: dict = field(default_factory=dict)


OtherTarget = tuple[Clip, Referent]
"""Where the annotation of another target of the same video is: its clip, and its referent without captions."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A clip with its referents, as a source plans it.

    others: targets of the same video, in this clip or in one that shares frames with it. Only planning for id switches
    looks for them (`pipeline.others`).
    """

    clip: Clip
    referents: tuple[Referent, ...]
    others: tuple[OtherTarget, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """What a source could not plan: one quarantine row. `where` is a file and line, or whatever finds the row again.

    clip_id: of the clip that a rejected expression is about; None where the clip itself could not be planned.
    referent_id: of a referent that could be planned, and is left out on purpose; `item` is then its clip.
    """

    source: str
    split: str
    item: str
    reason: Reason
    message: str
    where: str = ""
    referent_id: str | None = None
    clip_id: str | None = None

    @property
    def quarantined_as(self) -> tuple[str, str | None]:
        """Clip and referent of the quarantine row: `item` is the one, or for a known clip the other."""
        if self.clip_id is None:
            return self.item, self.referent_id
        return self.clip_id, self.referent_id or self.item


@dataclass(slots=True)
class Annotation:
    """What a dataset says about one referent, on the frames of its clip. Converted: see `schemas.geometry`.

    boxes: [T, 4] absent (NaN) where there is none
    known: [T] the dataset looked at this frame, and says either where the target is or that it is absent
    masks: per frame an RLE or None; None as a whole where the dataset has no masks
    raw_boxes: [T, 4] the dataset's own numbers, unconverted, NaN where it has none; `raw_format` says what they are
    """

    boxes: Boxes
    known: NDArray[np.bool_]
    masks: list[RLE | None] | None = None
    raw_boxes: NDArray[np.float32] | None = None
    raw_format: str = ""

    def __post_init__(self) -> None:
        n = len(self.known)
        for name, value in (
            ("boxes", self.boxes),
            ("raw_boxes", self.raw_boxes),
            ("masks", self.masks),
        ):
            if value is not None and len(value) != n:
                raise ValueError(f"Annotation: {name} has {len(value)} frames, known has {n}")

    @property
    def visible(self) -> NDArray[np.bool_]:
        """[T] frames in which the dataset has the target."""
        return is_box(self.boxes)


FALLBACK = "-fallback"
"""What the origin of a mask ends in that is no segmentation."""
ORIGINS = ("annotation", "detected", "tracked", "mask", "interpolated", "none")
"""Where a track's box comes from. `none`: no box in this frame."""


@dataclass(slots=True)
class Track:
    """One box per frame for one target.

    boxes: [T, 4], absent (NaN) where the tracker has lost the target
    score: [T] the tracker's own confidence, NaN where it has none; scales differ between trackers
    origin: [T] one of ORIGINS
    """

    boxes: Boxes
    score: NDArray[np.float32]
    origin: list[str]

    @property
    def visible(self) -> NDArray[np.bool_]:
        return is_box(self.boxes)

    @classmethod
    def empty(cls, n: int) -> "Track":
        return cls(absent(n), np.full(n, np.nan, np.float32), ["none"] * n)


@dataclass(frozen=True, slots=True)
class Detection:
    """The key-frame box that starts a track, and how it was found.

    score: None where nothing was scored (detector "annotation" copies the dataset's own box)
    margin: how far the runner-up elsewhere in the frame (IoU below 0.5) stays behind; None where nothing was scored
    text_used: whether the expression took part in finding the box
    """

    frame: int
    box: Boxes
    detector: str
    text_used: bool
    score: float | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One frame's mask and its origin: `annotation`, the segmenter's name, or `<name>-fallback` where it gave up.

    score: the segmenter's own estimate of its IoU with the truth, None where it has none
    box_iou: IoU of the box around the mask with the box that prompted it, None where nothing prompted it
    dropped: why the mask is not to be used, in a word; empty for a good one
    """

    mask: RLE
    origin: str
    score: float | None = None
    box_iou: float | None = None
    dropped: str = ""


def is_fallback(segment: Segment) -> bool:
    """Whether a mask is what the segmenter puts in the place of one that it could not make."""
    return segment.origin.endswith(FALLBACK)


@dataclass(frozen=True, slots=True)
class QA:
    """A question-answer pair. `question` holds the `<region>` placeholder that the trainer fills with TSF tokens."""

    qa_id: str
    family: str
    template: int
    question: str
    answer: str


@dataclass(slots=True)
class Sample:
    """What one referent becomes in a shard.

    members: file extension -> bytes, in the order in which they are written
    rows: table name -> rows, without the columns that only the shard knows
    """

    key: str
    members: dict[str, bytes]
    rows: dict[str, list[dict]]
