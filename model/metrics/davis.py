"""The DAVIS 2017 protocols over whole videos of index masks, as davis2017-evaluation runs them.

Index masks: [T, H, W] integers, 0 background, 1, 2, ... objects; 255 in the ground truth is void.
"""

from collections.abc import Mapping
from itertools import product
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from model.metrics.masks import DAVIS_TOLERANCE, outline, spans, tolerance
from model.metrics.statistics import Rules, frame_statistics

Protocol = Literal["semi-supervised", "unsupervised"]

VOID = 255
MAX_PROPOSALS = 20
"""More predicted objects than this in one video are refused, as by the official tool ("unsupervised" only)."""

Scores = NDArray[np.float64]


def davis(
    pred: ArrayLike | Mapping[str, ArrayLike],
    gt: ArrayLike | Mapping[str, ArrayLike],
    protocol: Protocol = "semi-supervised",
    rules: Rules = "official",
    bound_th: float = DAVIS_TOLERANCE,
) -> dict:
    """J and F of every object of one video (index masks) or of several (name -> index masks).

    "semi-supervised": first and last frame are left out, prediction k is compared with object k, void is background.
    "unsupervised": all frames, void pixels left out, predictions assigned to objects so that the mean of J and F is
    highest. A video without prediction, and an object without one, is scored against empty masks.

    rules "official" keeps two oddities. The objects of a video are 1 to the largest id in the FIRST frame: a later
    object with a larger id is never scored, and an unused id is an object without pixels. And with "unsupervised" the
    k-th row of a video belongs to the k-th assigned prediction, not to object k (no mean changes). "corrected" scores
    every id that occurs, under its own number, and repairs `decay` (see `frame_statistics`).

    Returns `per_object` {"<video>_<k>": {J_mean, J_recall, J_decay, F_...}} ("<k>" for a single video), `global`
    {"J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-..."} (means over objects), `per_sequence` {video: {gt_objects,
    pred_objects, frames_scored}} and `per_frame` {video: {"J", "F": [objects, frames]}}.
    Raises ValueError on bad shapes, predictions for unknown videos, or ids that the protocol does not allow.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol {protocol!r}: one of {', '.join(get_args(Protocol))}")
    if rules not in get_args(Rules):
        raise ValueError(f"rules {rules!r}: one of {', '.join(get_args(Rules))}")
    if isinstance(gt, Mapping) != isinstance(pred, Mapping):
        raise ValueError("pred and gt: give both as arrays (one video) or both as {name: array}")
    truths = gt if isinstance(gt, Mapping) else {"": gt}
    predictions = pred if isinstance(pred, Mapping) else {"": pred}
    if unknown := sorted(set(predictions) - set(truths)):
        raise ValueError(
            f"pred has videos that gt lacks: {', '.join(unknown[:5])}: check the names"
        )
    per_object: dict[str, dict[str, float]] = {}
    per_sequence: dict[str, dict[str, int]] = {}
    per_frame: dict[str, dict[str, Scores]] = {}
    for name, truth in truths.items():
        gt_thw = _indices(truth, f"gt {name}".strip())
        pred_thw = (
            _indices(predictions[name], f"pred {name}".strip())
            if name in predictions
            else np.zeros_like(gt_thw)
        )
        if pred_thw.shape != gt_thw.shape:
            raise ValueError(
                f"video {name!r}: pred {pred_thw.shape} and gt {gt_thw.shape} must have one shape"
            )
        ids, pred_ids, j_ot, f_ot = _score(pred_thw, gt_thw, protocol, rules, bound_th, name)
        per_sequence[name] = {
            "gt_objects": len(ids),
            "pred_objects": pred_ids,
            "frames_scored": j_ot.shape[1],
        }
        per_frame[name] = {"J": j_ot, "F": f_ot}
        for row, k in enumerate(ids):
            per_object[f"{name}_{k}" if name else str(k)] = {
                f"{measure}_{key}": value
                for measure, series in (("J", j_ot[row]), ("F", f_ot[row]))
                for key, value in frame_statistics(series, rules)._asdict().items()
            }
    if not per_object:
        raise ValueError(
            "gt holds no object: nothing to score (ids are counted in the first frame under rules "
            "'official')"
        )
    return {
        "per_object": per_object,
        "global": _means(per_object),
        "per_sequence": per_sequence,
        "per_frame": per_frame,
    }


def _score(
    pred_thw: NDArray, gt_thw: NDArray, protocol: Protocol, rules: Rules, bound_th: float, name: str
) -> tuple[list[int], int, Scores, Scores]:
    """Object ids [O], number of predicted objects, J and F [O, T] of one video."""
    void_thw = gt_thw == VOID
    objects_thw = np.where(void_thw, 0, gt_thw)
    first = int(objects_thw[0].max(initial=0))
    ids = (
        [*range(1, first + 1)]
        if rules == "official"
        else [int(k) for k in np.unique(objects_thw) if k]
    )
    semi = protocol == "semi-supervised"
    if semi:
        if len(gt_thw) < 3:
            raise ValueError(
                f"video {name!r} has {len(gt_thw)} frames: the semi-supervised protocol leaves out the "
                "first and the last and needs at least 3"
            )
        pred_thw, objects_thw = pred_thw[1:-1], objects_thw[1:-1]
    predicted = int(pred_thw.max(initial=0))
    allowed = max(ids, default=0) if semi else MAX_PROPOSALS
    if predicted > allowed:
        raise ValueError(
            f"video {name!r}: prediction has id {predicted}, {protocol} allows up to {allowed} here"
        )
    # As many predictions as objects at least: what was not predicted is an empty mask.
    pred_ids = ids if semi else [*range(1, max(predicted, len(ids)) + 1)]
    pairs = (
        [(o, o) for o in range(len(ids))]
        if semi
        else [*product(range(len(pred_ids)), range(len(ids)))]
    )
    radius = tolerance(gt_thw.shape[1:], bound_th)
    j_pot, f_pot = np.zeros((2, len(pred_ids), len(ids), len(pred_thw)))
    for span in spans(pred_thw.shape):
        void = None if semi else void_thw[span]
        predictions = [outline(pred_thw[span] == k, radius, void) for k in pred_ids]
        objects = [outline(objects_thw[span] == k, radius, void) for k in ids]
        for p, o in pairs:
            j_pot[p, o, span], f_pot[p, o, span] = (
                predictions[p].j(objects[o]),
                predictions[p].f(objects[o]),
            )
    rows = columns = np.arange(len(ids))
    if not semi:
        rows, columns = linear_sum_assignment(-(j_pot.mean(2) + f_pot.mean(2)) / 2)
        if rules == "corrected":
            order = np.argsort(columns)
            rows, columns = rows[order], columns[order]
    return ids, predicted, j_pot[rows, columns], f_pot[rows, columns]


def _means(per_object: dict[str, dict[str, float]]) -> dict[str, float]:
    means = {
        f"{measure}-{key.capitalize()}": float(
            np.mean([scores[f"{measure}_{key}"] for scores in per_object.values()])
        )
        for measure in "JF"
        for key in ("mean", "recall", "decay")
    }
    return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2} | means


def _indices(values: ArrayLike, name: str) -> NDArray:
    array = np.asarray(values)
    if array.ndim != 3 or not array.size or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: index masks are [T, H, W] integers, got shape {array.shape}, dtype {array.dtype}"
        )
    return array
