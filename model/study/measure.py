"""What a trained model does on clips it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from model.config import StageConfig
from model.data.collate import to_sample
from model.data.questions import Asked
from model.metrics import boundary_accuracy, region_similarity
from model.regions import answer_about_region
from model.sparrow import Sparrow
from model.study.feed import representatives, to_record
from model.study.world import StudyClip
from pipeline.corrupt import Corruption
from schemas.questions import TEMPLATES


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
    """Scores of every clip's phrase, asked once, on the first frame."""
    was = sparrow.training
    sparrow.eval()
    scores = [score(ask(sparrow, clip), clip) for clip in clips]
    sparrow.train(was)
    return scores


def ask(sparrow: Sparrow, clip: StudyClip) -> NDArray[np.bool_]:
    """Masks [T, H, W] of what the phrase means. The answer is put into the model's mouth: what is measured is what
    [SEG] and [BOX] mean, not whether they are said."""
    crops = None
    if sparrow.config.tsf.wanted(training=False):
        crops = {clip.phrase: representatives(clip, clip.boxes_nt4[0], sparrow.config.tsf.k)}
    found = sparrow.ground(clip.frames_thw3, clip.phrase, answer="force", crops=crops).union(
        clip.phrase
    )
    return np.zeros_like(clip.masks_nthw[0]) if found is None else found


@torch.no_grad()
def region_answers(sparrow: Sparrow, clips: Sequence[StudyClip], shown: int) -> dict[str, float]:
    """Answers to region questions: mean loss of a word of the phrase, and the share of answers that are the phrase.

    Each clip's target is shown by its crops, and asked about with the first template. shown: frames of a clip for the
    loss, as in training. Nothing for a model without TSF.
    """
    if sparrow.config.tsf.path == "none":
        return {}
    was = sparrow.training
    sparrow.eval()
    question, words = TEMPLATES.region[0], StageConfig(losses=("language",))
    losses, right = [], []
    for index, clip in enumerate(clips):
        record = to_record(clip, index, shown, sparrow.config.tsf, Corruption())
        record.asked = Asked("region", question, clip.phrase)
        sample = to_sample(record, sparrow)
        losses.append(float(sparrow([sample], words)["ce"]))
        length = len(sample.ids) - sample.answer_begins
        answer = answer_about_region(
            sparrow, clip.frames_thw3, question, record.crops or (), length
        )
        right.append(answer.strip() == clip.phrase)
    sparrow.train(was)
    return {"loss": float(np.mean(losses)), "exact": float(np.mean(right))}


def picture(sparrow: Sparrow, clips: Sequence[StudyClip], zoom: int = 2) -> NDArray[np.uint8]:
    """A row of frames per clip, under its phrase: the object that is meant outlined in white, what was found in red."""
    rows = []
    for clip in clips:
        found, cells = ask(sparrow, clip), []
        for frame, truth, mask in zip(clip.frames_thw3, clip.masks_nthw[0], found, strict=True):
            large = [
                cv2.resize(x, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
                for x in (frame, truth.astype(np.uint8), mask.astype(np.uint8))
            ]
            for area, colour, width in (
                (large[1], (255, 255, 255), 2),
                (large[2], (255, 40, 40), 1),
            ):
                outlines, _ = cv2.findContours(area, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(large[0], outlines, -1, colour, width)
            cells.append(np.pad(large[0], ((0, 2), (0, 2), (0, 0)), constant_values=255))
        row = np.concatenate(cells, 1)
        title = np.full((18, row.shape[1], 3), 255, np.uint8)
        cv2.putText(
            title, clip.phrase, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA
        )
        rows += [title, row]
    return np.concatenate(rows)


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
