"""Agree: compare a track with what the dataset says, and decide which frames are kept.

Paper, Appendix A: regenerated boxes are compared with the annotation, frames whose IoU falls below a threshold are
discarded. Every frame that is not kept has a word for why.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.select import evenly_spaced
from pipeline.sources.base import Rules
from schemas.geometry import iou
from schemas.records import Annotation, Track
from trackers.base import Tracker

DROPPED = ("", "no_box", "annotated_absent", "low_iou", "unsupported", "thinned")
"""Why a frame is not kept; the first of these that applies. Empty for a kept frame."""

ARRIVAL_IOU = 0.5
"""A bridge over a gap must reach the known box behind it at least this well, or the tracker has lost the target."""

_GIVEN = ("annotation", "mask")  # origins that are the dataset's own word


@dataclass(frozen=True, slots=True)
class Agreement:
    """iou: [T] float32 with the annotated box, NaN where either has none. kept: [T]. dropped: [T] of DROPPED."""

    iou: NDArray[np.float32]
    kept: NDArray[np.bool_]
    dropped: list[str]


def agree(track: Track, annotation: Annotation, rules: Rules) -> Agreement:
    """Keep or drop every frame of a track.

    no_box: the track has no box here
    annotated_absent: the dataset looked at this frame and says that the target is not there
    low_iou: below `rules.min_iou`
    unsupported: the dataset does not know this frame, and in the nearest tracked one that it does know the track is
        wrong for one of the two reasons before. Where it knows none of the tracked frames, nothing speaks against them
    thinned: more than `rules.max_kept_frames` are left; annotated frames stay first, then evenly spaced ones

    Boxes that come from the dataset itself (origins "annotation" and "mask") are never dropped for disagreeing with it.
    """
    _same_length(track, annotation)
    overlap = iou(track.boxes, annotation.boxes)
    given = np.isin(track.origin, _GIVEN)
    no_box = ~track.visible
    annotated_absent = ~no_box & annotation.known & ~annotation.visible & ~given
    low_iou = np.zeros_like(no_box)
    if rules.min_iou is not None:
        low_iou = ~given & (np.nan_to_num(overlap, nan=1.0) < rules.min_iou)
    speaks = annotation.known & ~no_box & ~given
    unsupported = ~(given | no_box | annotation.known) & _at_nearest(
        low_iou | annotated_absent, speaks
    )
    kept = ~(no_box | annotated_absent | low_iou | unsupported)
    thinned = kept & ~_thin(kept, annotation.visible, rules.max_kept_frames)

    reasons = np.select(
        [no_box, annotated_absent, low_iou, unsupported, thinned], DROPPED[1:], default=""
    )
    return Agreement(overlap, kept & ~thinned, reasons.tolist())


@dataclass(frozen=True, slots=True)
class TrackQuality:
    """How a track compares with the annotation, and on how many frames that rests.

    mean_iou: over all compared frames, those that were dropped included; None where nothing can be compared
    n_compared: frames with a tracked and an annotated box
    iou_coverage: of the kept frames, the share that was compared; None for a track that is the dataset's own
    """

    mean_iou: float | None
    n_compared: int
    iou_coverage: float | None


def track_quality(track: Track, agreement: Agreement, rules: Rules) -> TrackQuality:
    """The quality of a track before its boxes give way to those around masks."""
    is_tracked = np.array([origin == "tracked" for origin in track.origin])
    is_compared = is_tracked & np.isfinite(agreement.iou)
    overlaps = agreement.iou[is_compared]
    n_kept = int(agreement.kept.sum())
    coverage = None
    if rules.boxes == "tracked" and n_kept:
        coverage = int((is_compared & agreement.kept).sum()) / n_kept
    return TrackQuality(
        float(overlaps.mean()) if overlaps.size else None, int(is_compared.sum()), coverage
    )


def kept_share(agreement: Agreement, annotation: Annotation) -> float:
    """Of the frames in which the target may be, the share that agrees with the dataset.

    Frames where the dataset says that the target is absent do not count, and a frame that was only thinned out does.
    """
    agrees = agreement.kept | np.array([reason == "thinned" for reason in agreement.dropped])
    may_be_there = ~(annotation.known & ~annotation.visible) | agrees
    return int(agrees.sum()) / int(may_be_there.sum()) if agrees.any() else 0.0


def _at_nearest(flag: NDArray[np.bool_], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[T] the flag of the nearest frame among some, the earlier of two as near; false if there is none."""
    places = np.flatnonzero(among)
    if not places.size:
        return np.zeros_like(flag)
    distance = np.abs(np.arange(len(flag))[:, None] - places)
    return flag[places[distance.argmin(1)]]


def _thin(
    kept: NDArray[np.bool_], annotated: NDArray[np.bool_], most: int | None
) -> NDArray[np.bool_]:
    """At most `most` of the kept frames."""
    if most is None or kept.sum() <= most:
        return kept
    thin = np.zeros_like(kept)
    for frames in (np.flatnonzero(kept & annotated), np.flatnonzero(kept & ~annotated)):
        thin[frames[evenly_spaced(frames.size, most - int(thin.sum()))]] = True
    return thin


def fill_gaps(
    track: Track, annotation: Annotation, frames: NDArray[np.uint8], tracker: Tracker, max_gap: int
) -> Track:
    """Bridge short gaps of a track that is the dataset's own (MeViS) by tracking from the frame before each gap.

    A gap is a run of at most `max_gap` frames without a box that the dataset does not know, between two frames with
    one; what the dataset calls absent stays absent. A frame gets a box (origin "tracked") where the tracker keeps the
    target, and none in the whole gap if it does not arrive at the box behind it (IoU below ARRIVAL_IOU).
    frames: [T, H, W, 3] RGB. Returns a new track.
    """
    _same_length(track, annotation)
    filled = Track(track.boxes.copy(), track.score.copy(), list(track.origin))
    seen = np.flatnonzero(track.visible)
    for before, after in pairwise(seen.tolist()):
        gap = slice(before + 1, after)
        if not 0 < after - before - 1 <= max_gap or annotation.known[gap].any():
            continue
        [bridge] = tracker.track(frames[before : after + 1], track.boxes[before : before + 1])
        if not iou(bridge.boxes[-1], track.boxes[after]) >= ARRIVAL_IOU:  # NaN: lost on the way
            continue
        filled.boxes[gap] = bridge.boxes[1:-1]
        filled.score[gap] = bridge.score[1:-1]
        filled.origin[gap] = ["tracked" if found else "none" for found in bridge.visible[1:-1]]
    return filled


def _same_length(track: Track, annotation: Annotation) -> None:
    if len(track.boxes) != len(annotation.known):
        raise ValueError(
            f"track has {len(track.boxes)} frames, its annotation {len(annotation.known)}"
        )
