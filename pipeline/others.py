"""The other targets of a video: whom a trajectory may be switched to (`corrupt.kind=id_switch`, Table 10).

They are found when planning, as pointers, in all clips of the video and for all its expressions. Curation reads their
annotations and places the boxes by source frame, as clips of one video begin in different frames. A referent that is
not curated itself (by `--limit`, a corpus's caps or the exclude list) is still a target of the video.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from schemas.geometry import Boxes, clip_boxes, iou, is_box
from schemas.records import Annotation, Clip, OtherTarget, Planned, Referent, Rejected

MOST_OTHERS = 16
"""Other targets that a clip keeps; of more, those that are first by a seeded hash."""
SAME_IOU = 0.5
"""Two trajectories of this mean IoU are the same target: datasets number people anew in each clip, or not at all."""

Read = Callable[[Clip, Referent], Annotation | None]
"""Reads the annotation of a target; None if it is unusable."""


# --- in planning ----------------------------------------------------------------------------------------------------


class OtherTargets:
    """The targets of each video of a split, by pointers, without captions.

    Videos with a single target are forgotten. A target is known once for each span of frames, whatever number of
    expressions there are about it.
    """

    def __init__(self, items: Iterable[Planned | Rejected], seed: int):
        self._seed = seed
        found: dict[str, dict[tuple, OtherTarget]] = {}
        for item in items:
            if isinstance(item, Rejected):
                continue
            targets = found.setdefault(item.clip.video_id, {})
            for referent in item.referents:
                who = tuple(sorted(referent.object_ids)) or referent.referent_id
                pointer = replace(referent, caption="", raw_caption="")
                targets.setdefault((who, item.clip.source_frames), (item.clip, pointer))
        self._videos = {
            video: list(targets.values()) for video, targets in found.items() if len(targets) > 1
        }

    def attach(self, planned: Planned) -> Planned:
        """A planned clip with the targets that one of its referents can be switched to."""
        others = [
            other
            for other in self._videos.get(planned.clip.video_id, ())
            if _overlap(planned.clip, other[0])
            and any(may_be_other(referent, other[1]) for referent in planned.referents)
        ]
        if not others:
            return planned
        ranked = sorted(others, key=lambda other: _rank(self._seed, other[1].referent_id))
        return replace(planned, others=tuple(ranked[:MOST_OTHERS]))


def may_be_other(referent: Referent, other: Referent) -> bool:
    """Whether the dataset does not say that two referents have an object in common."""
    is_itself = referent.referent_id == other.referent_id
    return not is_itself and set(referent.object_ids).isdisjoint(other.object_ids)


def _overlap(a: Clip, b: Clip) -> bool:
    return max(a.start, b.start) < min(a.stop, b.stop)


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


# --- in curation ----------------------------------------------------------------------------------------------------


def place_others(
    planned: Planned, read: Read, scale: NDArray[np.float32], frame_size: tuple[int, int]
) -> list[tuple[Referent, Boxes]]:
    """The other targets of a planned clip, each with its boxes [T, 4] in the clip's frames.

    scale: [T, 2] (x, y) factors from each picture's own pixels to the frames, as of `pipeline.video.Decoded`.
    frame_size: (height, width) of the frames. Left out is what cannot be read, has masks of another size, or has no box
    in any frame of the clip.
    """
    factors = np.tile(scale, 2)
    placed = []
    for clip, referent in planned.others:
        annotation = read(clip, referent)
        if annotation is None or not _fits(annotation, frame_size):
            continue
        boxes = boxes_on(planned.clip, clip, annotation)
        boxes = clip_boxes(boxes * factors, *frame_size)
        if is_box(boxes).any():
            placed.append((referent, boxes))
    return placed


def boxes_on(clip: Clip, other: Clip, annotation: Annotation) -> Boxes:
    """[T, 4] the boxes of another clip's annotation in the frames of this clip, by source frame.

    Between two annotated frames they are interpolated, unless the dataset says in one of them that the target is
    absent. Before the first annotated frame and after the last there is no box.
    """
    known = annotation.known | annotation.visible
    theirs = np.asarray(other.source_frames, np.int64)[known]
    boxes = annotation.boxes[known].astype(np.float64)
    placed = np.full((len(clip), 4), np.nan)
    mine = np.asarray(clip.source_frames, np.int64)
    after = np.searchsorted(theirs, mine)  # the first annotated frame that is not before
    inside = np.flatnonzero(after < len(theirs))
    after, frames = after[inside], mine[inside]
    before = np.where(theirs[after] == frames, after, after - 1)
    has_both = before >= 0
    inside, after, before, frames = (x[has_both] for x in (inside, after, before, frames))
    gap = np.maximum(theirs[after] - theirs[before], 1)
    weight = ((frames - theirs[before]) / gap)[:, None]
    placed[inside] = boxes[before] * (1 - weight) + boxes[after] * weight
    return np.where(is_box(placed)[:, None], placed, np.nan).astype(np.float32)


def others_of(
    referent: Referent, boxes_t4: Boxes, placed: Sequence[tuple[Referent, Boxes]]
) -> tuple[Boxes, ...]:
    """The boxes [T, 4] of those targets that are others than the referent, whose own boxes are `boxes_t4` (absent in
    frames that are not kept): no object in common, a box in a kept frame, and there a mean IoU below SAME_IOU."""
    found = []
    for other, boxes in placed:
        overlap = iou(boxes_t4, boxes)
        overlap = overlap[np.isfinite(overlap)]
        if may_be_other(referent, other) and len(overlap) and overlap.mean() < SAME_IOU:
            found.append(boxes)
    return tuple(found)


def _fits(annotation: Annotation, frame_size: tuple[int, int]) -> bool:
    """Whether masks are of the size of the frames; those of another size belong to another picture."""
    masks = annotation.masks or []
    return all(mask is None or tuple(mask["size"]) == frame_size for mask in masks)
