"""CLIP's picture tower as LLaVA-like hosts use it: frozen, patch tokens of the last layer but one."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPVisionModel

from pipeline.encode.clip import MEAN, STD, prepare


def centre_crops(frames_thwc: NDArray[np.uint8], side: int) -> Tensor:
    """[T, H, W, 3] RGB -> [T, 3, side, side] float32, as CLIP's processor does it.

    The short side becomes `side` (bicubic with antialias), the middle is cut out, CLIP's
    statistics are applied. What lies left and right of the middle of a wide video is not seen.
    """
    height, width = frames_thwc.shape[1:3]
    short = min(height, width)
    size = (side * height // short, side * width // short)
    images = torch.from_numpy(np.ascontiguousarray(frames_thwc)).permute(0, 3, 1, 2).float()
    for step in (
        (height, size[1]),
        size,
    ):  # across, then down, each time cut and rounded to bytes, like PIL
        images = interpolate(images, step, mode="bicubic", antialias=True).clamp(0, 255).round()
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images[..., top : top + side, left : left + side] / 255 - mean) / std


def whole_crops(crops: Sequence[NDArray[np.uint8]], side: int) -> Tensor:
    """n pictures [h, w, 3] of any sizes -> [n, 3, side, side] float32, stretched: exactly what curation encodes."""
    if not crops:
        return torch.empty(0, 3, side, side)
    return torch.stack([prepare(crop, side, torch.device("cpu")) for crop in crops])


def patch_tokens(tower: CLIPVisionModel, pixels_n3ss: Tensor) -> Tensor:
    """[n, 3, S, S] -> [n, patches, C] in raster order: the hidden state at layer -2 without its class token."""
    out = tower(pixels_n3ss.to(tower.device, tower.dtype), output_hidden_states=True)
    return out.hidden_states[-2][:, 1:]
