"""VidSTG and HC-STVG: boxes drawn around predicted masks against annotated boxes.

Boxes are xyxy in pixels of the masks. Rules "official" puts a box's far corner ON the last foreground pixel, as the
released script does, so that a perfect mask scores below 1; an empty mask becomes the inverted box
(1e8, 1e8, 0, 0), which overlaps nothing. "corrected" boxes are half-open and absent boxes NaN.
Spans are (first frame, last frame), both inside, -1 for none.
"""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.metrics.masks import binary
from model.metrics.statistics import Rules
from schemas.geometry import absent, iou

MIN_AREA: dict[Rules, int] = {"official": 21, "corrected": 20}
"""Components (4-connected) with fewer pixels are deleted before a box is drawn. The released script means 20, but asks
scikit-image for it, whose version 0.26.0 (the reference run's) deletes 20 px too; its documentation says that earlier
versions kept them. Give `min_area=20` for the number of those."""

Span = tuple[int, int]


class VidSTGScore(NamedTuple):
    """One question's scores. gt_viou is the "mIoU" of the paper's tables."""

    gt_viou: float
    """Mean box IoU over the annotated span; 0 for an invalid span."""
    gt_viou_03: float
    """1 if gt_viou is above 0.3, else 0; gt_viou_05 the same for 0.5."""
    gt_viou_05: float
    tiou: float | None
    """IoU of the two spans; None if no span was predicted."""
    viou: float | None
    """Sum of box IoU over the frames of both spans, divided by the length of their union."""
    iou_t: NDArray[np.float64]
    """Box IoU in each frame of the annotated span."""


def mask_boxes(
    masks: ArrayLike, rules: Rules = "official", min_area: int | None = None
) -> NDArray[np.float64]:
    """Masks [T, H, W] -> tight boxes [T, 4] around what is left after components below min_area are deleted.

    min_area: in pixels; by default MIN_AREA of the rules.
    """
    masks_thw = binary(masks, "masks")
    _check(rules)
    least = MIN_AREA[rules] if min_area is None else min_area
    boxes_t4 = np.empty((len(masks_thw), 4))
    for t, mask_hw in enumerate(masks_thw):
        parts = cv2.connectedComponentsWithStats(mask_hw.astype(np.uint8), connectivity=4)[2][1:]
        x, y, width, height = parts[parts[:, cv2.CC_STAT_AREA] >= least, :4].T
        if not len(x):
            boxes_t4[t] = (1e8, 1e8, 0, 0) if rules == "official" else absent(1)[0]
            continue
        last = 1 if rules == "official" else 0
        boxes_t4[t] = x.min(), y.min(), (x + width).max() - last, (y + height).max() - last
    return boxes_t4


def vidstg_score(
    pred: ArrayLike,
    gt_boxes: ArrayLike,
    span: Span,
    rules: Rules = "official",
    pred_span: Span | None = None,
) -> VidSTGScore:
    """One question. pred: masks [T, H, W], or boxes [T, 4]; gt_boxes [T, 4]; frames outside span are not looked at.

    Raises ValueError on bad shapes, or a span that leaves the video.
    """
    pred_array = np.asarray(pred)
    pred_t4 = mask_boxes(pred_array, rules) if pred_array.ndim == 3 else pred_array
    gt_t4 = np.asarray(gt_boxes, np.float64)
    if pred_t4.shape != gt_t4.shape or gt_t4.shape[1:] != (4,):
        raise ValueError(
            f"pred {pred_array.shape} must be [T, H, W] masks or [T, 4] boxes, gt_boxes {gt_t4.shape} "
            "[T, 4], for one number of frames"
        )
    _check(rules)
    if not _is_span(span):
        temporal = None if pred_span is None else 0.0
        return VidSTGScore(0.0, 0.0, 0.0, temporal, temporal, np.zeros(0))
    if span[1] >= len(gt_t4):
        raise ValueError(f"span {span} leaves the video of {len(gt_t4)} frames")
    first, last = span
    iou_t = np.nan_to_num(iou(pred_t4, gt_t4)).astype(np.float64)
    gt_viou = float(iou_t[first : last + 1].mean())
    tiou = viou = None
    if pred_span is not None:
        tiou, viou = _temporal(iou_t, span, pred_span, rules)
    return VidSTGScore(
        gt_viou, float(gt_viou > 0.3), float(gt_viou > 0.5), tiou, viou, iou_t[first : last + 1]
    )


def vidstg_miou(
    pred: ArrayLike, gt_boxes: ArrayLike, span: Span | None = None, rules: Rules = "official"
) -> float:
    """Mean box IoU over the annotated span (all frames without one): the `gt_viou` of `vidstg_score`."""
    return vidstg_score(pred, gt_boxes, span or (0, len(np.asarray(gt_boxes)) - 1), rules).gt_viou


def vidstg(scores: Sequence[VidSTGScore | None]) -> dict[str, float]:
    """Means over questions: gt_viou, gt_viou@0.3, gt_viou@0.5. None, a question without a result, counts 0.

    The released script leaves such questions out; give it the others to get its number.
    """
    if not scores:
        raise ValueError("scores: no question to average over")
    table = np.array([score[:3] if score is not None else (0.0, 0.0, 0.0) for score in scores])
    return dict(zip(("gt_viou", "gt_viou@0.3", "gt_viou@0.5"), table.mean(0).tolist(), strict=True))


def _temporal(
    iou_t: NDArray[np.float64], gt: Span, pred: Span, rules: Rules
) -> tuple[float, float]:
    """tIoU and vIoU. The official script takes a span's last frame as its end, so the last frame does not count."""
    if not _is_span(pred):
        return 0.0, 0.0
    end = 0 if rules == "official" else 1
    inter = max(gt[0], pred[0]), min(gt[1], pred[1]) + end
    union = max(gt[1], pred[1]) + end - min(gt[0], pred[0])
    if inter[1] <= inter[0]:
        return 0.0, 0.0
    return (inter[1] - inter[0]) / union, float(iou_t[inter[0] : inter[1]].sum() / union)


def _is_span(span: Span) -> bool:
    return 0 <= span[0] <= span[1]


def _check(rules: str) -> None:
    if rules not in get_args(Rules):
        raise ValueError(f"rules {rules!r}: one of {', '.join(get_args(Rules))}")
