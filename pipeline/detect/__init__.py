"""Detect: find the referent in a key frame."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.records import Annotation, Detection


class Detector(Protocol):
    """Finds the box that starts a track. One file per detector; `pipeline.presets` picks by name."""

    name: str
    version: str

    def detect(self, frames: NDArray[np.uint8], caption: str, annotation: Annotation) -> Detection:
        """frames: [T, H, W, 3] RGB. Raises Quarantined(no_target | no_detection) when there is nothing to track."""
        ...
