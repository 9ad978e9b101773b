"""Detect: find the referent in a key frame."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.geometry import Boxes
from schemas.records import Annotation, Detection


class Detector(Protocol):
    """Finds the box that starts a track. One file per detector; `pipeline.presets` picks by name.

    Building one is cheap (a driver asks for its version alone): files are checked, models load at first use.
    """

    name: str
    version: str

    def detect(
        self, frames: NDArray[np.uint8], caption: str, annotation: Annotation, key_frames: int = 1
    ) -> Detection:
        """The best box of `key_frames` annotated frames. frames: [T, H, W, 3] RGB.

        Raises Quarantined(no_target | no_detection) when there is nothing to track.
        """
        ...

    def find(self, frame: NDArray[np.uint8], caption: str) -> tuple[Boxes, float] | None:
        """Box [4] and score in one frame [H, W, 3], from the expression alone; None if it is not there."""
        ...
