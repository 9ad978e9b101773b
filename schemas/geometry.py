"""Boxes and masks: the one place that knows their conventions.

Inside the project a box is `xyxy`, pixels of the original frame, 0-based, half-open, float32: a box that covers
exactly the pixel (0, 0) is `[0, 0, 1, 1]`, its width is `x2 - x1`. An absent box is four NaN. A mask is COCO
compressed RLE, `{"size": [height, width], "counts": str}`; an absent mask is `None`.

Sources write other things (1-based, xywh, inclusive corners: `docs/datasets/`); they call the functions here, once.
"""

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco

MAX_PIXELS = 64 * 1024 * 1024
"""Masks and frames larger than this (64 Mpx, twice 8K) are refused before anything is allocated."""

Boxes = NDArray[np.float32]
Mask = NDArray[np.bool_]


class RLE(TypedDict):
    """COCO compressed run-length encoding, column-major, as pycocotools writes it with `counts` as text."""

    size: list[int]
    counts: str


def _boxes(values: ArrayLike, name: str) -> NDArray[np.float64]:
    boxes = np.asarray(values, np.float64)
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"{name}: boxes need a last axis of 4, got shape {boxes.shape}")
    return boxes


# --- conversions into the project's convention -------------------------------------------------------------------


def from_xywh(boxes: ArrayLike, *, base: int = 0) -> Boxes:
    """`[..., (x, y, w, h)]`, first pixel numbered `base` (0; 1 in LaSOT and GOT-10k) -> xyxy half-open."""
    xywh = _boxes(boxes, "from_xywh")
    corner = xywh[..., :2] - base
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # numbers that are no box give infinity or NaN
        return np.concatenate([corner, corner + xywh[..., 2:]], axis=-1).astype(np.float32)


def from_xyxy(boxes: ArrayLike, *, base: int = 0, inclusive: bool = False) -> Boxes:
    """`[..., (x1, y1, x2, y2)]` -> xyxy half-open. With `inclusive`, x2 and y2 name the last pixel inside the box."""
    xyxy = _boxes(boxes, "from_xyxy") - base
    if inclusive:
        xyxy = xyxy + np.array([0, 0, 1, 1])
    with np.errstate(over="ignore"):
        return xyxy.astype(np.float32)


def to_xywh(boxes: ArrayLike, *, base: int = 0) -> Boxes:
    """Inverse of `from_xywh`."""
    xyxy = _boxes(boxes, "to_xywh")
    return np.concatenate([xyxy[..., :2] + base, xyxy[..., 2:] - xyxy[..., :2]], axis=-1).astype(
        np.float32
    )


def to_xyxy(boxes: ArrayLike, *, base: int = 0, inclusive: bool = False) -> Boxes:
    """Inverse of `from_xyxy`."""
    xyxy = _boxes(boxes, "to_xyxy") + base
    if inclusive:
        xyxy = xyxy - np.array([0, 0, 1, 1])
    return xyxy.astype(np.float32)


# --- questions about boxes ---------------------------------------------------------------------------------------


def absent(n: int) -> Boxes:
    """`[n, 4]` of NaN: no box in any of n frames."""
    return np.full((n, 4), np.nan, np.float32)


def is_box(boxes: ArrayLike) -> NDArray[np.bool_]:
    """`[..., 4]` -> `[...]`: finite and with positive width and height."""
    b = _boxes(boxes, "is_box")
    finite = np.isfinite(b).all(-1)
    with np.errstate(invalid="ignore"):
        return finite & (b[..., 2] > b[..., 0]) & (b[..., 3] > b[..., 1])


def clip_boxes(boxes: ArrayLike, height: int, width: int) -> Boxes:
    """Cut boxes to the frame. What lies wholly outside becomes an absent box; NaN stays NaN."""
    b = _boxes(boxes, "clip_boxes")
    b = np.where(
        np.isfinite(b).all(-1, keepdims=True), b, np.nan
    )  # an infinite corner is not a border
    cut = np.clip(b, 0, np.array([width, height, width, height], np.float64))
    return np.where(is_box(cut)[..., None], cut, np.nan).astype(np.float32)


def area(boxes: ArrayLike) -> NDArray[np.float64]:
    """`[..., 4]` -> `[...]` in square pixels; 0 for an absent or degenerate box."""
    b = _boxes(boxes, "area")
    size = np.where(is_box(b)[..., None], b[..., 2:] - b[..., :2], 0.0)
    return size.prod(-1)


def iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
    """Intersection over union of paired boxes, `[..., 4]` each -> `[...]`. NaN where either box is absent."""
    a, b = np.broadcast_arrays(_boxes(a, "iou"), _boxes(b, "iou"))
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = is_box(a) & is_box(b)
    inter = np.where(both, np.clip(np.nan_to_num(size), 0, None).prod(-1), 0.0)
    union = area(a) + area(b) - inter
    return np.where(both, inter / np.where(union > 0, union, 1.0), np.nan).astype(np.float32)


# --- masks -------------------------------------------------------------------------------------------------------


def rle_encode(mask: NDArray) -> RLE:
    """`[H, W]` bool or 0/1 -> RLE."""
    if mask.ndim != 2:
        raise ValueError(f"rle_encode: a mask has two axes [H, W], got shape {mask.shape}")
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")}


def rle_check(rle: object, size: tuple[int, int] | None = None) -> RLE:
    """`rle` as an RLE whose size is plausible and whose runs add up to it, else ValueError.

    size: the (height, width) it must have, where the caller knows it. Annotations call this before anything
    decodes the mask: the runs are untrusted text, and the sizes would be allocated.
    """
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str | bytes):
        raise ValueError(
            f"RLE: expected an object with `size` and text `counts`, got {str(rle)[:80]!r}"
        )
    dims = rle.get("size")
    if (
        not isinstance(dims, list | tuple)
        or len(dims) != 2
        or not all(type(d) is int and d > 0 for d in dims)
    ):
        raise ValueError(
            f"RLE: size must be [height, width], two positive integers, got {dims!r:.80}"
        )
    height, width = dims
    if height * width > MAX_PIXELS:
        raise ValueError(f"RLE: {height}x{width} is over the limit of {MAX_PIXELS} pixels")
    if size is not None and (height, width) != tuple(size):
        raise ValueError(f"RLE: size {height}x{width} differs from the frame's {size[0]}x{size[1]}")
    counts = (
        rle["counts"].encode("ascii", "replace")
        if isinstance(rle["counts"], str)
        else rle["counts"]
    )
    runs = _runs(counts)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"RLE: runs add up to {int(runs.sum())}, not to {height}x{width} pixels")
    return {"size": [height, width], "counts": counts.decode("ascii")}


def _runs(counts: bytes) -> NDArray[np.int64]:
    """Run lengths of COCO's text form: 5 bits a character, bit 6 = more, sign-extended; from the third run on,
    differences to the run two before (https://github.com/cocodataset/cocoapi, maskApi.c, rleFrString)."""
    if not counts:
        return np.zeros(0, np.int64)
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any():
        raise ValueError("RLE: counts hold a character outside COCO's alphabet")
    last = (codes & 32) == 0
    if not last[-1]:
        raise ValueError("RLE: counts end in the middle of a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    place = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise ValueError("RLE: a run is longer than any mask")
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    negative = (codes[ends] & 16) != 0
    values = values - np.where(negative, np.int64(1) << (5 * (place[ends] + 1)), 0)
    # run[i] = value[i] + run[i - 2] for i > 2, which is two interleaved running sums.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def rle_decode(rle: RLE) -> Mask:
    """RLE -> `[H, W]` bool."""
    return coco.decode(_bytes(rle)).astype(bool)


def rle_area(rle: RLE) -> int:
    """Number of foreground pixels."""
    return int(coco.area(_bytes(rle)))


def rle_box(rle: RLE) -> Boxes:
    """The tight half-open box `[4]` around the foreground; absent (NaN) for an empty mask."""
    if rle_area(rle) == 0:
        return absent(1)[0]
    return from_xywh(coco.toBbox(_bytes(rle)))


def rle_union(rles: list[RLE]) -> RLE:
    """Pixels in any of the masks, which must share one size."""
    sizes = {tuple(r["size"]) for r in rles}
    if len(sizes) != 1:
        raise ValueError(f"rle_union: masks of one frame differ in size: {sorted(sizes)}")
    merged = coco.merge([_bytes(r) for r in rles])
    return {"size": [int(s) for s in merged["size"]], "counts": merged["counts"].decode("ascii")}


def rle_iou(a: RLE, b: RLE) -> float:
    """Region similarity J of two masks of one size; two empty masks agree perfectly (1.0)."""
    if a["size"] != b["size"]:
        raise ValueError(f"rle_iou: sizes differ, {a['size']} and {b['size']}")
    if rle_area(a) == 0 and rle_area(b) == 0:
        return 1.0
    return float(coco.iou([_bytes(a)], [_bytes(b)], [0])[0, 0])


def _bytes(rle: RLE) -> dict:
    return {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
