"""What the pipeline needs of a box tracker."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.geometry import Boxes
from schemas.records import Track

Redetect = Callable[[NDArray[np.uint8]], tuple[Boxes, float] | None]
"""A frame [H, W, 3] -> box [4] and score of the target, or None."""


class Tracker(Protocol):
    """Follows targets from a key frame, both ways in time.

    name: goes into every row
    version: changes whenever results would (part of what decides whether a shard is up to date)
    """

    name: str
    version: str

    def track(
        self,
        frames: NDArray[np.uint8],
        boxes: Boxes,
        key_frame: int = 0,
        *,
        redetect: Redetect | None = None,
        descriptions: Sequence[str] = (),
    ) -> list[Track]:
        """frames: [T, H, W, 3] RGB; boxes: [N, 4] in frame `key_frame` -> N tracks of T frames.

        A frame where the target is lost has an absent (NaN) box and origin "none", the key frame has the given box.
        redetect: asked for the target again in frames after it was lost; a tracker may do without. Only for N = 1.
        descriptions: what is said about the target, for trackers that read.
        """
        ...
