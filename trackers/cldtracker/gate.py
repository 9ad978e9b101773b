"""Lost and found: when to believe a box, and where a film cuts.

CLDTracker always returns a box; that of a target that has left is somewhere, with a low score (its authors' lineage
advises a threshold on the score). A search window of four times the target cannot survive a cut either, and HC-STVG is
movie footage. Guards of spec/tracking.md section 6.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.config import Config


class GateConfig(Config):
    """lost_below, patience: lost when the score stays below for so many frames in a row; those frames lose their
    boxes. found_above: a lost target is believed again from this score on (only where nothing can be asked to look for
    it). redetect_every: while lost, the detector is asked again after so many frames. max_area_jump: a box whose area
    changes by more than this factor from one frame to the next counts as a low score. cut_above: mean change of a
    frame's thumbnail, in grey levels, that is a cut if it also stands out from its neighbours; 0 looks for no cuts."""

    lost_below: float = 0.25
    patience: int = 10
    found_above: float = 0.4
    redetect_every: int = 15
    max_area_jump: float = 4.0
    cut_above: float = 28.0

    @classmethod
    def off(cls) -> "GateConfig":
        """Believe every box, look for no cuts: the tracker as published."""
        return cls(lost_below=0.0, found_above=0.0, max_area_jump=1e9, cut_above=0.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """visible: [n] frames whose box is believed. lost_at: the first index at which the target counts as lost."""

    visible: NDArray[np.bool_]
    lost_at: int | None


def judge(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float32],
    cut: NDArray[np.bool_],
    start: NDArray[np.float64],
    config: GateConfig,
) -> Verdict:
    """Which boxes of a stream to believe. boxes: [n, 4] xywh in the order visited, scores: [n], cut: [n] a cut lies
    between this frame and the one visited before; start: [4] the box before the first frame."""
    areas = np.concatenate([start[None], boxes])[:, 2:].prod(1)
    change = np.maximum(areas[1:] / areas[:-1], areas[:-1] / areas[1:])
    bad = (scores < config.lost_below) | (change > config.max_area_jump)
    visible = np.ones(len(scores), bool)
    lost, poor, lost_at = False, 0, None
    for i in range(len(scores)):
        if lost:
            lost = not (scores[i] >= config.found_above and not bad[i])
            visible[i], poor = not lost, 0
            continue
        poor = poor + 1 if bad[i] else 0
        if cut[i] and scores[i] < config.found_above:
            lost, visible[i] = True, False
        elif poor >= config.patience:
            lost, visible[i - config.patience + 1 : i + 1] = True, False
        if lost and lost_at is None:
            lost_at = i
    return Verdict(visible, lost_at)


def scene_cuts(frames: NDArray[np.uint8], cut_above: float) -> NDArray[np.bool_]:
    """[T, H, W, 3] -> [T], true where a cut lies between frame t - 1 and t.

    Thumbnails change by more than `cut_above` grey levels on average there, and more than three times as much as
    around it: fast motion and camera pans change many frames in a row.
    """
    cuts = np.zeros(len(frames), bool)
    if cut_above <= 0 or len(frames) < 2:
        return cuts
    step = max(1, min(frames.shape[1:3]) // 72)
    small = np.stack([_thumbnail(frame[::step, ::step]) for frame in frames])
    change = np.abs(np.diff(small, axis=0)).mean((1, 2, 3))  # [T - 1]
    for t in np.flatnonzero(change > cut_above):
        around = np.r_[change[max(0, t - 3) : t], change[t + 1 : t + 4]]
        cuts[t + 1] = not around.size or change[t] > 3 * np.median(around)
    return cuts


def _thumbnail(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    return cv2.resize(np.ascontiguousarray(frame), (32, 18), interpolation=cv2.INTER_AREA).astype(
        np.float32
    )
