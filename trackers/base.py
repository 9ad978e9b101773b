"""What the pipeline needs of a box tracker."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.geometry import Boxes
from schemas.records import Track


class Tracker(Protocol):
    """Follows targets from a key frame, both ways in time.

    name: goes into every row
    version: changes whenever results would (part of what decides whether a shard is up to date)
    """

    name: str
    version: str

    def track(self, frames: NDArray[np.uint8], key_frame: int, boxes: Boxes) -> list[Track]:
        """frames: [T, H, W, 3] RGB; boxes: [N, 4] in frame `key_frame` -> N tracks of T frames.

        A frame where the target is lost has an absent (NaN) box and origin "none", the key frame has the given box.
        """
        ...
