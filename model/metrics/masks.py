"""J and F: how well a mask covers an object, and how well it follows the object's contour (Perazzi et al., CVPR 2016).

Masks are [T, H, W], bool or 0/1. Pixels marked in `void` count for nothing. Every number equals the one of
davis2017-evaluation to the last digit. What makes it fast: masks are packed 64 pixels to a word, and the work is done
around the object only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

DAVIS_TOLERANCE = 0.008
"""Distance at which two contours still match, as a fraction of the frame's diagonal."""

Words = NDArray[np.uint64]
"""Packed pixels [T, H, ceil(W / 64)]: bit k of word n is column 64 n + k. Bits beyond the frame are of no meaning."""

CACHE_PIXELS = 2**21
"""Of one mask that are worked on at a time: 256 KiB packed."""


def region_similarity(
    pred: ArrayLike, gt: ArrayLike, void: ArrayLike | None = None
) -> NDArray[np.float64]:
    """J per frame [T]: intersection over union; 1 where both masks are empty.

    Raises ValueError where pred, gt and void are not [T, H, W] of one shape.
    """
    pred_thw, gt_thw, void_thw = _volumes(pred, gt, void)
    counts_3t = np.empty((3, len(gt_thw)), np.int64)
    for t, (a, b) in enumerate(zip(pred_thw, gt_thw, strict=True)):
        if void_thw is not None:
            a, b = a & ~void_thw[t], b & ~void_thw[t]
        counts_3t[:, t] = [np.count_nonzero(m) for m in (a & b, a, b)]
    return _jaccard(*counts_3t)


def boundary_accuracy(
    pred: ArrayLike, gt: ArrayLike, void: ArrayLike | None = None, bound_th: float = DAVIS_TOLERANCE
) -> NDArray[np.float64]:
    """F per frame [T]: harmonic mean of contour precision and recall; 1 where neither mask has a contour.

    A contour pixel is right if the other contour passes within the tolerance. bound_th: a fraction of the diagonal
    (rounded up to whole pixels) below 1, a number of pixels from 1 on.
    Raises ValueError where pred, gt and void are not [T, H, W] of one shape, or for a bad bound_th.
    """
    pred_thw, gt_thw, void_thw = _volumes(pred, gt, void)
    radius = tolerance(gt_thw.shape[1:], bound_th)
    scores_t = np.empty(len(gt_thw))
    for span in spans(gt_thw.shape):
        a, b = (
            outline(m[span], radius, None if void_thw is None else void_thw[span])
            for m in (pred_thw, gt_thw)
        )
        scores_t[span] = a.f(b)
    return scores_t


@dataclass(frozen=True, slots=True)
class Outline:
    """One object in T frames, prepared for comparison with any number of others. Made by `outline`."""

    mask: Words
    area_t: NDArray[np.int64]
    window: tuple[slice, slice, slice]
    """All frames, and the rows and words that hold every pixel of the mask and of its contour."""
    contour: Words
    """Of the window only."""
    length_t: NDArray[np.int64]
    reach: Words
    """What lies within the tolerance of the contour."""

    def j(self, other: "Outline") -> NDArray[np.float64]:
        """Intersection over union of the two masks per frame; 1 where both are empty."""
        return _jaccard(
            _bits(self.mask[self.window] & other.mask[self.window]), self.area_t, other.area_t
        )

    def f(self, other: "Outline") -> NDArray[np.float64]:
        """Contour F-measure of the two masks per frame."""
        precision_t = _bits(self.contour & other.reach[self.window]) / np.maximum(self.length_t, 1)
        recall_t = _bits(other.contour & self.reach[other.window]) / np.maximum(other.length_t, 1)
        sum_t = precision_t + recall_t
        scores_t = 2 * precision_t * recall_t / np.where(sum_t > 0, sum_t, 1)
        return np.where((self.length_t == 0) & (other.length_t == 0), 1.0, scores_t)


def outline(
    mask_thw: NDArray[np.bool_], radius: int, void_thw: NDArray[np.bool_] | None = None
) -> Outline:
    """Area, contour and the contour's neighbourhood of one mask [T, H, W]; radius as `tolerance` gives it.

    A contour pixel differs from its right, lower or lower right neighbour (inside the frame), so contours lie half a
    pixel towards the origin, as in the reference. Best called for one of the `spans` at a time.
    """
    mask = _pack(mask_thw if void_thw is None else mask_thw & ~void_thw)
    reach = np.zeros_like(mask)
    seen_hn = np.bitwise_or.reduce(mask, axis=0)
    rows, words = np.flatnonzero(seen_hn.any(1)), np.flatnonzero(seen_hn.any(0))
    if not len(rows):
        none_t, nothing = np.zeros(len(mask), np.int64), (slice(None), slice(0, 0), slice(0, 0))
        return Outline(mask, none_t, nothing, mask[nothing], none_t, reach)
    height, width = seen_hn.shape
    # One more on each side: the contour also lies above and left of the mask, and looks at what is below and right.
    window = slice(None), _slice(rows, height), _slice(words, width)
    part = mask[window]
    contour = _contour(part, mask_thw.shape[2] - 1 - 64 * window[2].start)
    near = _spread(contour, radius)
    top, left = window[1].start - radius, window[2].start - _margin(radius)
    within = near[:, max(-top, 0) : height - top, max(-left, 0) : width - left]
    reach[:, max(top, 0) :, max(left, 0) :][:, : within.shape[1], : within.shape[2]] = within
    return Outline(mask, _bits(part), window, contour, _bits(contour), reach)


def spans(shape: tuple[int, ...]) -> Iterator[slice]:
    """[T, H, W] cut in time, so that a span's packed pixels stay in the processor's cache."""
    frames = max(1, CACHE_PIXELS // max(1, shape[1] * shape[2]))
    return (slice(start, start + frames) for start in range(0, shape[0], frames))


def tolerance(size: tuple[int, ...], bound_th: float = DAVIS_TOLERANCE) -> int:
    """`bound_th` in whole pixels, for frames of size (height, width)."""
    if not bound_th >= 0 or (bound_th >= 1 and bound_th != int(bound_th)):
        raise ValueError(
            f"bound_th {bound_th}: a fraction of the diagonal in [0, 1), or whole pixels from 1 on"
        )
    return int(bound_th if bound_th >= 1 else np.ceil(bound_th * np.linalg.norm(size)))


def binary(values: ArrayLike, name: str, axes: str = "THW") -> NDArray[np.bool_]:
    """`values` as bool, or ValueError if they are not 0/1 numbers with one axis per letter of `axes`."""
    array = np.asarray(values)
    if array.ndim != len(axes):
        raise ValueError(f"{name}: needs axes [{', '.join(axes)}], got shape {array.shape}")
    if array.dtype == np.bool_:
        return array
    if array.size and not np.isin((array.min(), array.max()), (0, 1)).all():
        raise ValueError(
            f"{name}: a mask holds 0 and 1 (or bool), got values {array.min()} to {array.max()}"
        )
    return array != 0


def _volumes(
    pred: ArrayLike, gt: ArrayLike, void: ArrayLike | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_] | None]:
    pred_thw, gt_thw = binary(pred, "pred"), binary(gt, "gt")
    void_thw = None if void is None else binary(void, "void")
    for name, volume in (("pred", pred_thw), ("void", void_thw)):
        if volume is not None and volume.shape != gt_thw.shape:
            raise ValueError(
                f"{name} {volume.shape} and gt {gt_thw.shape} differ: both must be [T, H, W] of one video"
            )
    return pred_thw, gt_thw, void_thw


def _jaccard(
    inter_t: NDArray[np.int64], a_t: NDArray[np.int64], b_t: NDArray[np.int64]
) -> NDArray[np.float64]:
    union_t = a_t + b_t - inter_t
    return np.where(union_t > 0, inter_t / np.maximum(union_t, 1), 1.0)


def _pack(mask_thw: NDArray[np.bool_]) -> Words:
    frames, height, width = mask_thw.shape
    packed = np.zeros((frames, height, -(-width // 64) * 8), np.uint8)
    packed[..., : -(-width // 8)] = np.packbits(mask_thw, axis=2, bitorder="little")
    return packed.view(np.uint64)


def _bits(words: Words) -> NDArray[np.int64]:
    """How many are set per frame [T]."""
    return np.bitwise_count(words).sum(axis=(1, 2), dtype=np.int64)


def _slice(found: NDArray[np.intp], size: int) -> slice:
    return slice(max(int(found[0]) - 1, 0), min(int(found[-1]) + 2, size))


def _contour(mask: Words, last_column: int) -> Words:
    """Pixels that differ from a neighbour; last_column: the frame's, where a pixel has no right neighbour."""
    mask = np.ascontiguousarray(mask)
    right = mask >> np.uint64(1)
    # In one piece, as row by row is slow; only the last word of a row meets a foreign one, the next row's first.
    right.reshape(-1)[:-1] |= mask.reshape(-1)[1:] << np.uint64(63)
    right[..., -1] &= np.uint64(2**63 - 1)
    word, bit = divmod(last_column, 64)
    if word < mask.shape[2]:
        right[..., word] |= mask[..., word] & np.uint64(1 << bit)
    contour = mask ^ right
    contour[:, :-1] |= (mask[:, :-1] ^ mask[:, 1:]) | (mask[:, :-1] ^ right[:, 1:])
    return contour


def _margin(radius: int) -> int:
    return -(-radius // 64)


def _spread(contour: Words, radius: int) -> Words:
    """Discs around the pixels of a contour [T, h, n]; the result has `radius` more rows and `_margin` more words at
    each side.

    A disc is a stack of horizontal runs: from its top and bottom row inwards, the runs only grow.
    """
    margin, height = _margin(radius), contour.shape[1]
    run = np.pad(contour, ((0, 0), (0, 0), (margin, margin)))
    out = np.zeros((len(run), height + 2 * radius, run.shape[2]), np.uint64)
    half = 0
    for dy in range(radius, -1, -1):
        while half < (goal := isqrt(radius**2 - dy**2)):
            # No step may leave a gap between the run and its two shifted copies, or pass the neighbouring word.
            step = min(goal - half, 2 * half + 1, 63)
            run, half = _widen(run, step), half + step
        out[:, radius - dy : radius - dy + height] |= run
        if dy:
            out[:, radius + dy : radius + dy + height] |= run
    return out


def _widen(words: Words, step: int) -> Words:
    """Every pixel and those up to `step` left and right of it. Rows need room: they are treated as one long row."""
    row, near, far = words.reshape(-1), np.uint64(step), np.uint64(64 - step)
    wider = row << near
    wider |= row >> near
    wider |= row
    wider[1:] |= row[:-1] >> far
    wider[:-1] |= row[1:] << far
    return wider.reshape(words.shape)
