"""What a trained model does on clips it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.metrics import boundary_accuracy, region_similarity
from model.sparrow import Sparrow
from model.study.feed import representatives
from model.study.world import StudyClip


@dataclass(frozen=True)
class Score:
    """Of one clip. right: of the object meant and its rival, the one meant is covered better, over the last quarter of
    the clip; half a point where neither is covered more."""

    kind: str
    j: float
    f: float
    right: float

    @property
    def jf(self) -> float:
        return (self.j + self.f) / 2


def evaluate(sparrow: Sparrow, clips: Sequence[StudyClip]) -> list[Score]:
    """Ground every clip's phrase from its first frame on. Answers are put into the model's mouth: what is measured is
    what [SEG] and [BOX] mean, not whether they are said."""
    was = sparrow.training
    sparrow.eval()
    scores = []
    for clip in clips:
        crops = None
        if sparrow.config.tsf.wanted(training=False):
            crops = {clip.phrase: representatives(clip, clip.boxes_nt4[0], sparrow.config.tsf.k)}
        found = sparrow.ground(clip.frames_thw3, clip.phrase, answer="force", crops=crops)
        mask = found.union(clip.phrase)
        scores.append(score(np.zeros_like(clip.masks_nthw[0]) if mask is None else mask, clip))
    sparrow.train(was)
    return scores


def score(mask_thw: NDArray[np.bool_], clip: StudyClip) -> Score:
    """J and F are means over all frames."""
    target, rival = clip.masks_nthw[:2]
    last = slice(-max(1, len(target) // 4), None)
    own, other = (float(region_similarity(mask_thw, one)[last].mean()) for one in (target, rival))
    return Score(
        clip.kind,
        float(region_similarity(mask_thw, target).mean()),
        float(boundary_accuracy(mask_thw, target).mean()),
        0.5 if own == other else float(own > other),
    )
