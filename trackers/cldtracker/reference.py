"""CLDTracker as its paper describes it: one target, one frame after the other, one forward each.

The readable definition that the lock-step engine is tested against and measured against, and the only place where the
text branch runs (`text="parity"`): it needs the pixels of every frame's box on the host.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trackers.cldtracker.crop import crop_target, normalise
from trackers.cldtracker.network import CLDTrackerNet, decode, hann_window
from trackers.cldtracker.state import step_state

TextOf = Callable[[NDArray[np.uint8], tuple[float, ...]], tuple[Tensor, Tensor]]
"""A frame and the previous box (xywh) -> (template text [1, dim], search text [1, dim])."""


@torch.inference_mode()
def track_one(
    net: CLDTrackerNet,
    frames: NDArray[np.uint8],
    order: Sequence[int],
    box: Sequence[float],
    template_frame: int,
    template_box: Sequence[float],
    text_of: TextOf | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Boxes [n, 4] xywh and scores [n] in the frames of `order`, from `box` in the frame before them.

    frames: [T, H, W, 3] uint8 RGB. ValueError for a template box that cannot be cropped.
    """
    parameter = next(net.parameters())
    window = hann_window(net.config.search // net.config.patch).to(parameter.device)

    def tensor(crop: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(crop).permute(2, 0, 1)[None].to(parameter.device)
        return normalise(pixels, parameter.dtype)

    crop, _ = crop_target(frames[template_frame], template_box, 2.0, net.config.template)
    template = tensor(crop)
    state = torch.tensor([list(box)], dtype=torch.float64)
    boxes, scores = np.empty((len(order), 4)), np.empty(len(order), np.float32)
    for i, t in enumerate(order):
        frame = frames[t]
        height, width = frame.shape[:2]
        previous = tuple(state[0].tolist())
        crop, factor = crop_target(frame, previous, 4.0, net.config.search)
        text = text_of(frame, previous) if text_of else None
        found, score, _ = decode(net(template, tensor(crop), text), window)
        side = torch.tensor([round(net.config.search / factor)])
        state = step_state(
            state, found.double().cpu(), side, torch.tensor([height]), torch.tensor([width])
        )
        boxes[i], scores[i] = state[0].numpy(), float(score)
    return boxes, scores
