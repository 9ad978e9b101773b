"""Noise on training trajectories (Table 10): how much does SPARROW depend on a perfect tracker?

Three kinds, each at an exact level and from a seed; inference is never corrupted. A trajectory is one box per frame,
`boxes_t4` xyxy in any unit; a row of NaN is a frame without the target.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.config import Config


class Corruption(Config):
    """kind and level of the noise.

    jitter: level is delta, a share of the box's own size: the centre moves by up to delta of width and height, width
    and height are scaled by up to 1 +- delta (the paper's three deltas are lost; 0.05, 0.1, 0.2 are ours).
    id_switch: level is the share of frames that follow another target of the same video, in contiguous segments.
    dropout: level is the share of frames whose box is removed before TSF tokens are made.
    """

    kind: Literal["none", "jitter", "id_switch", "dropout"] = "none"
    level: float = Field(default=0.0, ge=0, le=1)
    segments: int = Field(default=1, ge=1)
    """Into how many segments the switched frames are split."""
    seed: int = 0


def corrupt(
    boxes_t4: NDArray[np.floating],
    options: Corruption,
    others: tuple[NDArray[np.floating], ...] = (),
    key: int = 0,
) -> NDArray[np.floating]:
    """The trajectory with noise. others: trajectories of other targets of the same video, for "id_switch".

    key: which sample this is; (seed, key) decides every draw. ValueError where there is no other target to switch to.
    """
    rng = np.random.default_rng([options.seed, key])
    boxes = np.array(boxes_t4, np.float64)
    present = np.flatnonzero(~np.isnan(boxes).any(1))
    count = round(options.level * len(present))
    if options.kind == "none" or len(present) == 0:
        return boxes.astype(boxes_t4.dtype)
    if options.kind == "jitter":
        size = boxes[present, 2:] - boxes[present, :2]
        centre = (boxes[present, :2] + boxes[present, 2:]) / 2
        centre += rng.uniform(-options.level, options.level, size.shape) * size
        size *= 1 + rng.uniform(-options.level, options.level, size.shape)
        boxes[present] = np.concatenate([centre - size / 2, centre + size / 2], 1)
    elif options.kind == "dropout":
        boxes[rng.choice(present, count, replace=False)] = np.nan
    else:
        if not others:
            raise ValueError(
                "id_switch needs another trajectory of the same video, and there is none"
            )
        for rows in _segments(len(present), count, options.segments, rng):
            other = others[rng.integers(len(others))]
            boxes[present[rows]] = other[present[rows]]
    return boxes.astype(boxes_t4.dtype)


def _segments(
    length: int, count: int, parts: int, rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """`parts` disjoint runs of together exactly `count` of `length` rows, uniformly placed."""
    if count == 0:
        return []
    parts = min(parts, count, length - count + 1)
    runs = np.diff([0, *sorted(rng.choice(np.arange(1, count), parts - 1, replace=False)), count])
    gaps = np.sort(rng.choice(length - count + 1, parts, replace=False))
    starts = gaps + np.concatenate([[0], np.cumsum(runs)[:-1]])
    return [np.arange(start, start + run) for start, run in zip(starts, runs, strict=True)]
