"""Online TSF: crops that the loader cuts along a trajectory, for `tsf.selection=online` (the release).

Curation has chosen four crops of each target and stored them; the release chooses inside the model, out of up to 16.
Noise on the trajectory (Table 10) is a step of curation, and is in the stored crops already. Only where the loader
cuts its own crops does it make the noise itself, by the same functions.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.corrupt import Corruption, Trajectory, make_trajectory
from pipeline.others import SAME_IOU
from pipeline.sample import TRACK_DTYPE
from pipeline.select import candidates
from schemas.contents import load_array
from schemas.geometry import Boxes, iou, is_box
from schemas.records import Quarantined

MOST_CROPS = 16
"""Crops from which the model chooses (the release)."""

Others = Callable[[], Sequence[bytes]]
"""`.track.npy` members of other targets of the video; asked for only if needed."""


def read_track(data: bytes) -> NDArray:
    """`.track.npy` -> a row of TRACK_DTYPE per frame. ValueError if it is none."""
    track = load_array(data)
    if track.dtype != TRACK_DTYPE or not len(track):
        raise ValueError(
            f"track.npy has {len(track)} rows of {track.dtype}, expected rows of {TRACK_DTYPE}"
        )
    return track


def boxes_of(track: NDArray) -> Boxes:
    """[T, 4] xyxy in pixels, absent where the track has none."""
    return np.stack([track[name] for name in ("x1", "y1", "x2", "y2")], 1)


def online_trajectory(
    track: NDArray, noise: Corruption, others: Others, key: str, frame_size: tuple[int, int]
) -> Trajectory:
    """What crops are cut along: the boxes of the kept frames, with noise if there is any.

    key: of the sample; its noise is the same in every epoch, as a tracker's would be. Noise that leaves no box gives a
    trajectory without any.
    """
    usable = track["kept"][:, None]
    boxes = np.where(usable, boxes_of(track), np.nan).astype(np.float32)
    tracks: tuple[Boxes, ...] = ()
    if noise.kind == "id_switch":
        placed = [_on_frames_of(track, read_track(data)) for data in others()]
        tracks = tuple(other for other in placed if _is_other(boxes, other))
    try:
        return make_trajectory(boxes, noise, key, frame_size, tracks)
    except Quarantined:
        count = int(is_box(boxes).sum())
        return Trajectory(np.full_like(boxes, np.nan), count, count)


def online_frames(trajectory: Trajectory) -> list[int]:
    """Frames to cut crops from, evenly spaced among those with a box."""
    return candidates(is_box(trajectory.boxes), MOST_CROPS).tolist()


def _on_frames_of(track: NDArray, other: NDArray) -> Boxes:
    """The boxes [T, 4] of another clip's track in the frames of this one, by source frame."""
    placed = np.full((len(track), 4), np.nan, np.float32)
    _, mine, theirs = np.intersect1d(
        track["source_frame"], other["source_frame"], return_indices=True
    )
    placed[mine] = boxes_of(other)[theirs]
    return placed


def _is_other(boxes: Boxes, other: Boxes) -> bool:
    """Whether two tracks share frames and are not of the same target, which two clips may number differently."""
    overlap = iou(boxes, other)
    overlap = overlap[np.isfinite(overlap)]
    return bool(len(overlap) and overlap.mean() < SAME_IOU)
