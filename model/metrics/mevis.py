"""Per-expression scores of MeViS and Ref-YouTube-VOS: J and F averaged over frames, then over expressions."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.metrics.masks import DAVIS_TOLERANCE, binary, outline, spans, tolerance
from schemas.geometry import RLE, rle_decode, rle_union


def mevis(
    pred: Mapping[str, ArrayLike | None],
    gt: Mapping[str, ArrayLike],
    bound_th: float = DAVIS_TOLERANCE,
) -> dict:
    """Scores of expressions: key -> masks [T, H, W] of all frames, in both mappings.

    The key is the caller's (say "<video>_<expression>"). An expression that pred lacks, or holds None for, scores 0.
    Mappings that load on access keep one video in memory at a time.
    Returns `per_expression` {key: {"J", "F"}} and the means "J", "F", "J&F" over expressions.
    Raises ValueError for bad shapes, unknown keys in pred, and an empty gt.
    """
    if not gt:
        raise ValueError("gt holds no expression: nothing to score")
    if unknown := sorted(set(pred) - set(gt)):
        raise ValueError(
            f"pred has expressions that gt lacks: {', '.join(unknown[:5])}: check the keys"
        )
    per_expression = {
        key: expression_score(pred.get(key), truth, bound_th) for key, truth in gt.items()
    }
    j, f = (
        float(np.mean([score[measure] for score in per_expression.values()])) for measure in "JF"
    )
    return {"per_expression": per_expression, "J": j, "F": f, "J&F": (j + f) / 2}


def expression_score(
    pred: ArrayLike | None, gt: ArrayLike, bound_th: float = DAVIS_TOLERANCE
) -> dict[str, float]:
    """Mean J and F over the frames of one expression, masks [T, H, W]; 0 and 0 without a prediction (None)."""
    gt_thw = binary(gt, "gt")
    if not gt_thw.size:
        raise ValueError(f"gt has no frames or no pixels: shape {gt_thw.shape}")
    if pred is None:
        return {"J": 0.0, "F": 0.0}
    pred_thw = binary(pred, "pred")
    if pred_thw.shape != gt_thw.shape:
        raise ValueError(
            f"pred {pred_thw.shape} and gt {gt_thw.shape} differ: both must hold all frames of the video"
        )
    radius = tolerance(gt_thw.shape[1:], bound_th)
    j_t, f_t = np.empty((2, len(gt_thw)))
    for span in spans(gt_thw.shape):
        a, b = outline(pred_thw[span], radius), outline(gt_thw[span], radius)
        j_t[span], f_t[span] = a.j(b), a.f(b)
    return {"J": float(j_t.mean()), "F": float(f_t.mean())}


def merge_objects(
    tracks: Sequence[Sequence[RLE | None]], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """One RLE (or None) per frame for each object of an expression -> the union [T, H, W].

    size: (height, width). Raises ValueError where tracks differ in length or size, or there are none.
    """
    if len({len(track) for track in tracks}) != 1:
        raise ValueError(
            f"tracks: at least one, and one length for all; got lengths {[len(t) for t in tracks]}"
        )
    merged = np.zeros((len(tracks[0]), *size), np.bool_)
    for t, rles in enumerate(zip(*tracks, strict=True)):
        present = [rle for rle in rles if rle is not None]
        if any(tuple(rle["size"]) != tuple(size) for rle in present):
            raise ValueError(
                f"frame {t}: a mask differs in size from the frame's {size[0]}x{size[1]}"
            )
        if present:
            merged[t] = rle_decode(rle_union(present))
    return merged
