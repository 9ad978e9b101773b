"""The detector that needs no weights: it copies the dataset's own box of a well-chosen frame.

This is not detection: the expression is never read, nothing is searched for. Every row says so (`detector` is
"annotation", `text_used` is false, the score is NULL): key box given, not found from text.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.config import Config
from schemas.geometry import Boxes, area
from schemas.records import Annotation, Detection, Quarantined, Reason


class AnnotationDetectorConfig(Config):
    """Nothing to set: the key frame follows from the annotation alone."""

    kind: Literal["annotation"] = "annotation"


class AnnotationDetector:
    """Key box given, not found from text (`pipeline.detect.Detector`)."""

    name = "annotation"
    version = "1"

    def __init__(self, config: AnnotationDetectorConfig | None = None):
        self.config = config or AnnotationDetectorConfig()

    def detect(
        self, frames: NDArray[np.uint8], caption: str, annotation: Annotation, key_frames: int = 1
    ) -> Detection:
        """The annotated box of `key_frame(annotation)`. Raises Quarantined(no_target) if no frame has one.

        key_frames: without effect. Given boxes have no scores by which one of several could be chosen.
        """
        frame = key_frame(annotation)
        return Detection(
            frame, annotation.boxes[frame].copy(), self.name, text_used=False, score=None
        )

    def find(self, frame: NDArray[np.uint8], caption: str) -> tuple[Boxes, float] | None:
        """None: nothing is searched for, so a lost target is not found again."""
        return None


def key_frame(annotation: Annotation) -> int:
    """The frame to start from: of the central half of the visible frames, the one with the largest box.

    Tracking both ways from the middle keeps the distance to either end short; the largest box is the one least
    likely to be cut by an occluder or by the border. Boxes within a tenth of the largest count as equally large, and
    of those the one nearest to the middle is taken. Raises Quarantined(no_target) if the target is never visible.
    """
    return key_frames(annotation, 1)[0]


def key_frames(annotation: Annotation, n: int) -> list[int]:
    """Up to n frames to search in, ascending: the visible frames in n runs of equal length, `key_frame`'s rule in each.

    Fewer than n if fewer are visible. Raises Quarantined(no_target) if the target is never visible.
    """
    if n < 1:
        raise ValueError(f"key_frames: at least one frame is needed, got {n}")
    visible = np.flatnonzero(annotation.visible)
    if visible.size == 0:
        raise Quarantined(
            Reason.NO_TARGET,
            f"none of {len(annotation.known)} frames has an annotated box to start from",
            stage="detect",
        )
    return [
        _central_and_large(run, annotation.boxes)
        for run in np.array_split(visible, min(n, visible.size))
    ]


def _central_and_large(run: NDArray[np.intp], boxes: Boxes) -> int:
    quarter = run.size // 4
    central = run[quarter : run.size - quarter]
    size = area(boxes[central])
    large = central[size >= 0.9 * size.max()]
    middle = run[run.size // 2]
    return int(large[np.argmin(np.abs(large - middle))])
