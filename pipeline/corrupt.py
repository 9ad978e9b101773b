"""Corrupt: noise on training trajectories (paper, Appendix D.4, Table 10).

How much does SPARROW depend on a perfect tracker? The trajectory is corrupted first, then TSF is made of it: crops,
features and K-means. Three kinds, each at an exact level and from a seed; inference is never corrupted. A trajectory
is one box per frame, `boxes_t4` xyxy in any unit; a row of NaN is a frame without the target.
"""

import zlib
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from schemas.config import Config
from schemas.geometry import Boxes, clip_boxes, is_box
from schemas.records import Quarantined, Reason, Track


class Corruption(Config):
    """kind and level of the noise. ValueError for a level without a kind, and for a kind at level 0.

    jitter: level is delta, a share of the box's own size: the centre moves by up to delta of width and height, width
    and height are scaled by up to 1 +- delta (the paper's three deltas are lost; 0.05, 0.1, 0.2 are ours).
    id_switch: level is the share of frames that follow another target of the same video, in contiguous segments.
    dropout: level is the share of frames whose box is removed before TSF tokens are made. Below level 1 at least one
    box stays.
    """

    kind: Literal["none", "jitter", "id_switch", "dropout"] = "none"
    level: float = Field(default=0.0, ge=0, le=1)
    segments: int = Field(default=1, ge=1)
    """Into how many segments the switched frames are split."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _kind_and_level_belong_together(self) -> Self:
        if self.kind == "none" and self.level > 0:
            raise ValueError(
                f"level {self.level:g} without a kind changes nothing: set kind to jitter, id_switch or dropout too"
            )
        if self.kind != "none" and self.level == 0:
            raise ValueError(
                f"kind {self.kind} at level 0 changes nothing: set a level above 0 too, or kind to none"
            )
        return self


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
        if options.level < 1:
            count = min(count, len(present) - 1)
        boxes[rng.choice(present, count, replace=False)] = np.nan
    else:
        if not others:
            raise ValueError(
                "id_switch needs another trajectory of the same video, and there is none"
            )
        other, has_other = _choose(others, present, count, rng)
        frames = present[_switched(has_other, count, options.segments, rng)]
        boxes[frames] = other[frames]
    return boxes.astype(boxes_t4.dtype)


def _choose(
    others: tuple[NDArray[np.floating], ...],
    present: NDArray[np.intp],
    count: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """A drawn one of the others that are there in `count` of the frames `present`, or else the one that is in most.

    Returns its boxes, and for each frame of `present` whether it has one.
    """
    drawn = [others[i] for i in rng.permutation(len(others))]
    there = [~np.isnan(other[present]).any(1) for other in drawn]
    enough = [min(int(has_box.sum()), count) for has_box in there]
    best = int(np.argmax(enough))  # the first of those that have most
    return drawn[best], there[best]


def _switched(
    has_other: NDArray[np.bool_], count: int, parts: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """`count` of the rows where the other target has a box, or all of them where there are fewer; in `parts` segments.

    A segment is whole where one stretch of such rows has room for all; else it continues behind the gap.
    """
    rows = np.flatnonzero(has_other)
    count = min(count, len(rows))
    stretches = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    if len(stretches) > 1:
        places = np.array([max(0, len(stretch) - count + 1) for stretch in stretches])
        if places.any():
            rows = stretches[rng.choice(len(stretches), p=places / places.sum())]
    segments = _segments(len(rows), count, parts, rng)
    return rows[np.concatenate(segments)] if segments else rows[:0]


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


# --- in curation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What TSF is made of: the boxes of a track in its kept frames, with noise where that is asked for.

    boxes: [T, 4] xyxy in the frame, absent where no crop may be cut
    n_corruptible: frames with a box before the noise
    n_corrupted: of these, frames whose box was moved, replaced or removed
    n_switchable: of these, frames in which another target has a box; None for other kinds than id_switch
    """

    boxes: Boxes
    n_corruptible: int
    n_corrupted: int = 0
    n_switchable: int | None = None


def boxes_in(track: Track, kept: NDArray[np.bool_]) -> Boxes:
    """[T, 4] the boxes of a track in the frames that are kept, absent elsewhere."""
    return np.where((kept & track.visible)[:, None], track.boxes, np.nan).astype(np.float32)


def make_trajectory(
    boxes_t4: Boxes,
    options: Corruption,
    key: str,
    frame_size: tuple[int, int],
    others: tuple[Boxes, ...] = (),
) -> Trajectory:
    """A track's boxes in its kept frames (absent elsewhere) -> what TSF is made of.

    key: the referent's id, which decides every draw together with the seed. frame_size: (height, width), to which
    jittered boxes are cut. others: [T, 4] boxes of other targets of the same video in the frames of this clip; without
    any, "id_switch" changes nothing. Quarantined(no_target) where the noise leaves no box.
    """
    n_corruptible = int(is_box(boxes_t4).sum())
    if options.kind == "none":
        return Trajectory(boxes_t4, n_corruptible)
    n_switchable = None
    if options.kind == "id_switch":
        has_other = np.zeros(len(boxes_t4), bool)
        for other in others:
            has_other |= is_box(other)
        n_switchable = int((has_other & is_box(boxes_t4)).sum())
        if n_switchable == 0:
            return Trajectory(boxes_t4, n_corruptible, 0, 0)
    noisy_t4 = corrupt(boxes_t4, options, others, zlib.crc32(key.encode()))
    if options.kind == "jitter":
        noisy_t4 = clip_boxes(noisy_t4, *frame_size)
    is_same = (noisy_t4 == boxes_t4).all(1)
    n_corrupted = int((is_box(boxes_t4) & ~is_same).sum())
    if n_corruptible and not is_box(noisy_t4).any():
        message = f"{options.kind} at level {options.level:g} leaves no box in any kept frame"
        raise Quarantined(Reason.NO_TARGET, message, stage="corrupt")
    return Trajectory(noisy_t4, n_corruptible, n_corrupted, n_switchable)
