"""What the tracker looks at: a square around a box, black beyond the picture, resized (tracking spec, section 1.6).

`crop_target` cuts one picture with OpenCV and is the reference. `crop_geometry` and `crop_batch` do the same for a
batch of streams on any device, with static shapes and without a host synchronisation, and repeat OpenCV's fixed-point
arithmetic to the bit, so that a batch on a GPU sees the pixels of the reference.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MAX_SIDE = 1 << 15
"""Pixels. No box of a real picture asks for more, and OpenCV refuses much more."""

_ONE = (
    1 << 11
)  # OpenCV's INTER_RESIZE_COEF_SCALE: the weight 1 in the fixed-point arithmetic of cv2.resize
_FAR = float(1 << 40)  # px; keeps nonsense boxes inside int64 without an error


def crop_target(
    image: NDArray[np.uint8],
    box_xywh: Sequence[float] | NDArray[np.floating],
    factor: float,
    size: int,
) -> tuple[NDArray[np.uint8], float]:
    """The square around a box whose area is factor^2 times the box's, resized to size x size.

    image: [H, W, 3]; box_xywh: pixels, may reach over the border -> (crop [size, size, 3], resize_factor size / side).
    side = ceil(sqrt(w h) factor); the corner is rounded half to even. Beyond the picture the crop is black, and so is
    the picture's last column or row where the crop ends on or beyond it: the reference pads one pixel too many there,
    and the network was trained with it.

    ValueError for a box that is not finite, whose area is not positive, or that needs a crop of more than `MAX_SIDE`
    pixels. (The reference raises a plain Exception for area 0, a maths error for a negative one and a conversion error
    for NaN. Like it, this takes a box of less than a pixel, and one whose sides are both negative.)
    For a box so far outside that the crop holds no pixel of the picture the crop is black. (The reference cuts a
    non-square patch from the opposite border there and squeezes it.)
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    x, y, w, h = _checked(box_xywh)
    side = math.ceil(math.sqrt(w * h) * factor)
    if not 1 <= side <= MAX_SIDE:
        raise ValueError(
            f"box {w:g} x {h:g} px needs a crop of {side} px, expected 1 to {MAX_SIDE}"
        )
    x1, y1 = round(x + 0.5 * w - 0.5 * side), round(y + 0.5 * h - 0.5 * side)
    height, width = image.shape[:2]
    left, right = min(max(x1, 0), width - 1), max(min(x1 + side, width - 1), 0)
    top, bottom = min(max(y1, 0), height - 1), max(min(y1 + side, height - 1), 0)
    patch = np.zeros((side, side, 3), np.uint8)
    if left < right and top < bottom:
        patch[top - y1 : bottom - y1, left - x1 : right - x1] = image[top:bottom, left:right]
    crop = cv2.resize(patch, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8), size / side


def _checked(box_xywh: Sequence[float] | NDArray[np.floating]) -> list[float]:
    box = np.asarray(box_xywh, np.float64)
    if box.shape != (4,):
        raise ValueError(f"box has shape {list(box.shape)}, expected x, y, w, h")
    if not np.isfinite(box).all():
        raise ValueError(f"box {box.tolist()} is not finite")
    if not box[2] * box[3] > 0:
        raise ValueError(f"box {box.tolist()} (x, y, w, h) is too small: its area must be positive")
    return box.tolist()


def crop_geometry(boxes_xywh: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """The squares of `crop_target` for boxes [B, 4] float64 -> (x1, y1, side), each [B] int64, in pixels.

    Never raises and never waits for the device: a box that is not finite or too small gets a side of at least 1 at some
    place. Whoever feeds such boxes finds them by their state, not here.
    """
    x, y, w, h = (
        torch.nan_to_num(boxes_xywh, nan=0.0, posinf=_FAR, neginf=-_FAR)
        .clamp(-_FAR, _FAR)
        .unbind(-1)
    )
    side = torch.ceil(torch.sqrt((w * h).clamp(min=0)) * factor).clamp(1, MAX_SIDE)
    x1 = torch.round(x + 0.5 * w - 0.5 * side)  # half to even, as in Python
    y1 = torch.round(y + 0.5 * h - 0.5 * side)
    return x1.long(), y1.long(), side.long()


def crop_batch(
    frames: Tensor,
    base: Tensor,
    height: Tensor,
    width: Tensor,
    x1: Tensor,
    y1: Tensor,
    side: Tensor,
    size: int,
) -> Tensor:
    """Cut and resize one square per stream -> uint8 [B, 3, size, size], equal to `crop_target` bit by bit.

    frames: uint8 [bytes], an arena of [H, W, 3] RGB pictures of any sizes one after the other; base: [B] int64, byte
    where each stream's picture begins; height, width: [B] int64 of it; x1, y1, side: [B] int64 from `crop_geometry`.

    OpenCV's uint8 bilinear resize works in two passes with weights of 11 bits: along a row the weighted sum is exact;
    along a column both terms are cut to integers after the product, then rounded together. All values fit int32.
    Black pixels are pixels of weight 0: their terms vanish in either pass, so no mask of the picture's size is needed.
    """
    columns, column_weights = _taps(x1, side, width, size, at_border="clamp")
    rows, row_weights = _taps(y1, side, height, size, at_border="repeat")
    pixels = frames.as_strided(
        (frames.numel() - 2, 3), (1, 1)
    )  # [byte] -> that byte and the next two: R, G, B
    out: Tensor | None = None
    for row, row_weight in zip(rows, row_weights, strict=True):
        line = (base[:, None] + row * width[:, None] * 3)[:, :, None]  # [B, size, 1], bytes
        total: Tensor | None = None
        for column, column_weight in zip(columns, column_weights, strict=True):
            tap = pixels[line + column[:, None, :] * 3].int()  # [B, size, size, 3]
            tap *= column_weight[:, None, :, None]
            total = tap if total is None else total.add_(tap)
        assert total is not None
        total.bitwise_right_shift_(4).mul_(row_weight[:, :, None, None]).bitwise_right_shift_(16)
        out = total if out is None else out.add_(total)
    assert out is not None
    return out.add_(2).bitwise_right_shift_(2).to(torch.uint8).permute(0, 3, 1, 2).contiguous()


def _taps(
    start: Tensor, side: Tensor, length: Tensor, size: int, *, at_border: str
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Along one axis: two source pixels per output pixel ([B, size] int64 each, inside the picture) and their weights
    ([B, size] int32 each, 0 to 2048; 0 where the pixel is black).

    start, side, length: [B], of the crop in the picture and of the picture. At the crop's own border OpenCV moves the
    weight to the border pixel along rows ("clamp") but takes the border pixel twice along columns ("repeat"), which
    rounds differently.
    """
    step = 1.0 / (size / side.double())  # this way round: 1 / (1 / x) is not x
    at = torch.arange(size, device=start.device, dtype=torch.float64) + 0.5
    place = (at[None] * step[:, None] - 0.5).float()
    first = torch.floor(place)
    share = place - first
    first = first.long()
    last = (side - 1)[:, None]
    if at_border == "clamp":
        share = torch.where((first < 0) | (first >= last), torch.zeros_like(share), share)
    ends = [torch.minimum(first.clamp(min=0), last), torch.minimum((first + 1).clamp(min=0), last)]
    weights = [torch.round((1.0 - share) * _ONE).int(), torch.round(share * _ONE).int()]
    edge = (length - 1)[:, None]
    source = [end + start[:, None] for end in ends]
    inside = [
        (at >= 0) & (at < edge) for at in source
    ]  # the picture's last pixel is never read: see crop_target
    pixels = [torch.minimum(at.clamp(min=0), edge).clamp(min=0) for at in source]
    weights = [weight * ok for weight, ok in zip(weights, inside, strict=True)]
    return (pixels[0], pixels[1]), (weights[0], weights[1])


def normalise(crops: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [B, 3, S, S] RGB -> [B, 3, S, S] of `dtype`: divided by 255, then ImageNet's mean and deviation.

    Black becomes -mean / std: the padding comes before the normalisation.
    """
    # numbers, not tensors: nothing is copied to the device
    red, green, blue = (
        (crops[:, c].float() / 255.0 - mean) / std
        for c, (mean, std) in enumerate(zip(MEAN, STD, strict=True))
    )
    return torch.stack([red, green, blue], 1).to(dtype)
