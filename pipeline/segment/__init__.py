"""Segment: a mask for every frame that has a box."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.geometry import Boxes
from schemas.records import Segment


class Segmenter(Protocol):
    """Makes masks out of boxes. One file per segmenter; `pipeline.presets` picks by name."""

    name: str
    version: str

    def segment(self, frames: NDArray[np.uint8], boxes: Boxes) -> list[Segment | None]:
        """frames: [T, H, W, 3] RGB, boxes: [T, 4] -> per frame a mask [H, W] with its origin, None where there is no
        box or the config asks for no mask. A mask that fails its own checks says so (`Segment.dropped`).
        """
        ...
