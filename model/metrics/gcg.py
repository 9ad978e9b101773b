"""Grounded caption generation (VideoGCG): mask tracks of a caption's phrases against the annotated ones.

Masks are [objects, T, H, W]; the IoU of two tracks is taken over the whole volume. Protocols:

- "sparrow", "videoglamm": the two released scripts. mIoU is the mean over greedily matched pairs, so objects that were
  missed cost nothing. Recall matching ends at the first best pair that fails a test, even if others would pass.
  Objects are read from folders sorted as text (0, 1, 10, 11, 2, ...), phrases in their order, so that from eleven
  objects on masks meet foreign phrases. Two empty tracks have IoU 1 with sparrow; with videoglamm the IoU is
  undefined, which passes for a match in recall and ends the matching of mIoU.
- "corrected": the one-to-one matching that is best in total; mIoU divides by the number of annotated objects, misses
  counting 0; recall is the largest number of pairs that pass both tests. Nothing annotated: 1 if nothing was
  predicted, else 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from model.metrics.masks import binary

GCGProtocol = Literal["sparrow", "videoglamm", "corrected"]

Pair = tuple[int, int]
"""(annotated object, predicted object)."""


def gcg_miou(pred: ArrayLike, gt: ArrayLike, protocol: GCGProtocol = "sparrow") -> float:
    """Mean IoU of one video: pred [P, T, H, W], gt [G, T, H, W]; the order of objects does not matter.

    Raises ValueError on bad shapes or an unknown protocol.
    """
    iou_gp = track_iou(pred, gt, protocol)
    if protocol == "corrected":
        if not len(iou_gp):
            return float(iou_gp.shape[1] == 0)
        return float(iou_gp[linear_sum_assignment(-iou_gp)].sum() / len(iou_gp))
    matched: list[float] = []
    left_gp = iou_gp.copy()
    while left_gp.size and left_gp.flat[best := int(left_gp.argmax())] > 0:
        matched.append(left_gp.flat[best])
        g, p = np.unravel_index(best, left_gp.shape)
        left_gp[g, :] = left_gp[:, p] = 0
    return float(np.mean(matched)) if matched else 0.0


def gcg_recall(
    pred: ArrayLike,
    gt: ArrayLike,
    similarity: ArrayLike,
    protocol: GCGProtocol = "sparrow",
    iou_threshold: float = 0.5,
    text_threshold: float = 0.5,
) -> float:
    """Share of one video's annotated phrases that are found: `gcg_matches` over G. 0 where nothing is annotated.

    Over videos the benchmark divides sums (`gcg`), not means of this number.
    """
    pairs = gcg_matches(pred, gt, similarity, protocol, iou_threshold, text_threshold)
    annotated = len(np.asarray(gt))
    return len(pairs) / annotated if annotated else 0.0


def gcg_matches(
    pred: ArrayLike,
    gt: ArrayLike,
    similarity: ArrayLike,
    protocol: GCGProtocol = "sparrow",
    iou_threshold: float = 0.5,
    text_threshold: float = 0.5,
) -> list[Pair]:
    """Pairs whose track IoU and phrase similarity both reach their thresholds, in the order they were found.

    similarity [G, P]: cosine of the phrases' mean-pooled BERT states in the released scripts. Object i belongs to
    phrase i on both sides; the pairs hold phrase numbers. Raises ValueError on bad shapes or an unknown protocol.
    """
    iou_gp = track_iou(pred, gt, protocol)
    annotated, predicted = iou_gp.shape
    similarity_gp = np.asarray(similarity, np.float64)
    if similarity_gp.size == 0 == iou_gp.size:
        return []
    if similarity_gp.shape != iou_gp.shape:
        raise ValueError(
            f"similarity: needs a row per annotated and a column per predicted object, {iou_gp.shape}, "
            f"got {similarity_gp.shape}"
        )
    if protocol == "corrected":
        passes_gp = (iou_gp >= iou_threshold) & (similarity_gp >= text_threshold)
        # Any passing pair beats all IoU together, so the matching has most pairs first and highest IoU second.
        rows, columns = linear_sum_assignment(
            np.where(passes_gp, -1 - iou_gp / (1 + min(iou_gp.shape)), 0)
        )
        return [(int(g), int(p)) for g, p in zip(rows, columns, strict=True) if passes_gp[g, p]]
    left_gp = iou_gp[np.ix_(_text_order(annotated), _text_order(predicted))]
    left_similarity_gp = similarity_gp.copy()
    pairs: list[Pair] = []
    while True:
        g, p = (int(i) for i in np.unravel_index(int(left_gp.argmax()), left_gp.shape))
        # As the scripts ask it: an undefined IoU is not below the threshold.
        if left_gp[g, p] < iou_threshold or left_similarity_gp[g, p] < text_threshold:
            return pairs
        pairs.append((g, p))
        left_gp[g, :] = left_gp[:, p] = 0
        left_similarity_gp[g, :] = left_similarity_gp[:, p] = 0
        if len(pairs) == min(annotated, predicted):
            return pairs


def track_iou(
    pred: ArrayLike, gt: ArrayLike, protocol: GCGProtocol = "sparrow"
) -> NDArray[np.float64]:
    """IoU of whole tracks [G, P]; for two empty tracks 1, or NaN with "videoglamm"."""
    if protocol not in get_args(GCGProtocol):
        raise ValueError(f"protocol {protocol!r}: one of {', '.join(get_args(GCGProtocol))}")
    pred_pthw, gt_gthw = binary(pred, "pred", "PTHW"), binary(gt, "gt", "GTHW")
    if pred_pthw.shape[1:] != gt_gthw.shape[1:]:
        raise ValueError(
            f"pred {pred_pthw.shape} and gt {gt_gthw.shape} differ after the first axis: both must be "
            "[objects, T, H, W] of one video (also for 0 objects)"
        )
    inter_gp = np.array([[np.count_nonzero(g & p) for p in pred_pthw] for g in gt_gthw], np.int64)
    inter_gp = inter_gp.reshape(len(gt_gthw), len(pred_pthw))
    area_g, area_p = (
        np.array([np.count_nonzero(track) for track in v], np.int64) for v in (gt_gthw, pred_pthw)
    )
    union_gp = area_g[:, None] + area_p - inter_gp
    both_empty = np.nan if protocol == "videoglamm" else 1.0
    return np.where(union_gp > 0, inter_gp / np.maximum(union_gp, 1), both_empty)


@dataclass(frozen=True)
class GCGScore:
    """One video's part in the benchmark's numbers; several make `gcg`, or go through `bootstrap`."""

    miou: float
    matched: int
    phrases: int
    """Annotated phrases that recall counts."""


def gcg_score(
    pred: ArrayLike | None,
    gt: ArrayLike,
    similarity: ArrayLike | None,
    protocol: GCGProtocol = "sparrow",
) -> GCGScore:
    """One video. pred None: there is no result, which the released scripts leave out of recall (but not of mIoU)."""
    if pred is None:
        return GCGScore(0.0, 0, len(np.asarray(gt)) if protocol == "corrected" else 0)
    if similarity is None:
        raise ValueError("similarity: needed wherever there is a prediction")
    matched = len(gcg_matches(pred, gt, similarity, protocol))
    return GCGScore(gcg_miou(pred, gt, protocol), matched, len(np.asarray(gt)))


def gcg(scores: Sequence[GCGScore]) -> dict[str, float]:
    """ "mIoU": mean over videos; "Recall": matched over annotated phrases of all videos together (0 without any)."""
    if not scores:
        raise ValueError("scores: no video to average over")
    phrases = sum(score.phrases for score in scores)
    recall = sum(score.matched for score in scores) / phrases if phrases else 0.0
    return {"mIoU": float(np.mean([score.miou for score in scores])), "Recall": recall}


def _text_order(n: int) -> list[int]:
    return sorted(range(n), key=str)
