"""The detector that needs no weights: it copies the dataset's own box of a well-chosen frame.

This is not detection: the expression is never read, nothing is searched for. Every row says so (`detector` is
"annotation", `text_used` is false, the score is NULL): key box given, not found from text.
"""

import numpy as np
from numpy.typing import NDArray

from schemas.config import Config
from schemas.geometry import area
from schemas.records import Annotation, Detection, Quarantined, Reason


class AnnotationDetectorConfig(Config):
    """Nothing to set: the key frame follows from the annotation alone."""


class AnnotationDetector:
    """Key box given, not found from text (`pipeline.detect.Detector`)."""

    name = "annotation"
    version = "1"

    def __init__(self, config: AnnotationDetectorConfig | None = None):
        self.config = config or AnnotationDetectorConfig()

    def detect(self, frames: NDArray[np.uint8], caption: str, annotation: Annotation) -> Detection:
        """The annotated box of `key_frame(annotation)`. Raises Quarantined(no_target) if no frame has one."""
        frame = key_frame(annotation)
        return Detection(frame, annotation.boxes[frame].copy(), self.name, text_used=False, score=None)


def key_frame(annotation: Annotation) -> int:
    """The frame to start from: of the central half of the visible frames, the one with the largest box.

    Tracking both ways from the middle keeps the distance to either end short; the largest box is the one least
    likely to be cut by an occluder or by the border. Boxes within a tenth of the largest count as equally large, and
    of those the one nearest to the middle is taken. Raises Quarantined(no_target) if the target is never visible.
    """
    visible = np.flatnonzero(annotation.visible)
    if visible.size == 0:
        raise Quarantined(
            Reason.NO_TARGET,
            f"none of {len(annotation.known)} frames has an annotated box to start from",
            stage="detect",
        )
    quarter = visible.size // 4
    central = visible[quarter : visible.size - quarter]
    size = area(annotation.boxes[central])
    large = central[size >= 0.9 * size.max()]
    middle = visible[visible.size // 2]
    return int(large[np.argmin(np.abs(large - middle))])
