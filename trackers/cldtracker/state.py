"""From what the network says about a crop to the box in the picture (tracking spec, section 1.7)."""

import torch
from torch import Tensor


def step_state(
    state_xywh: Tensor,
    boxes_cxcywh: Tensor,
    side: Tensor,
    height: Tensor,
    width: Tensor,
    margin: float = 10,
) -> Tensor:
    """The next state of B streams: [B, 4] float64, x, y, w, h in pixels of the picture.

    state_xywh: [B, 4] float64, the state the crop was made from; boxes_cxcywh: [B, 4] from `decode`, fractions of the
    crop; side: [B] of the crop in pixels; height, width: [B] of the picture.
    The crop is taken to lie around the previous centre itself, although its corner was rounded to a pixel: so does the
    reference. The box is cut to the picture, but reaches at least `margin` pixels into it and is at least that large.
    A state or box of NaN gives NaN.
    """
    side, height, width = side.double(), height.double(), width.double()
    cx, cy, w, h = (boxes_cxcywh.double() * side[:, None]).unbind(1)
    x, y, old_w, old_h = state_xywh.double().unbind(1)
    cx = cx + (x + 0.5 * old_w) - 0.5 * side
    cy = cy + (y + 0.5 * old_h) - 0.5 * side
    left, new_w = _cut(cx - 0.5 * w, w, width, margin)
    top, new_h = _cut(cy - 0.5 * h, h, height, margin)
    return torch.stack([left, top, new_w, new_h], 1)


def _cut(start: Tensor, extent: Tensor, limit: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    first = torch.minimum(start.clamp(min=0), limit - margin)
    last = torch.minimum((start + extent).clamp(min=margin), limit)
    return first, (last - first).clamp(min=margin)
