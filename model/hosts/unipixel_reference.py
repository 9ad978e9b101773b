"""How one points at an object in UniPixel's prompt: a point or box for <|ref|>, a mask for <|mem|>
(`spec/hosts.md` section 1.2). SPARROW itself does not; a mask's tokens are the nearest thing the host has to TSF.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

if TYPE_CHECKING:
    from model.hosts.unipixel import UniPixel

REF, MEM = "<|ref|>", "<|mem|>"


@dataclass(frozen=True)
class Pointed:
    """A point (x, y) or a box (x, y, x, y), in [0, 1] of the frame, on one of the frames that the host sampled."""

    frame: int
    place: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.place) not in (2, 4):
            raise ValueError(f"{self.place} is neither a point (x, y) nor a box (x, y, x, y)")


class TimeCode(nn.Module):
    """Fixed random Fourier features of a moment in [0, 1]: SAM2's position code in one dimension."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(1, features))

    def forward(self, moments_n: Tensor) -> Tensor:
        """[n] -> [n, 2 * features]."""
        matrix = self.get_buffer("positional_encoding_gaussian_matrix")
        angles = 2 * math.pi * (2 * moments_n[:, None].float() - 1) @ matrix.float()
        return torch.cat([angles.sin(), angles.cos()], 1).to(matrix)


def pointed_tokens(host: "UniPixel", pointed: Sequence[Pointed], num_frames: int) -> Tensor:
    """[n, D] for n points and boxes in a video of `num_frames` sampled frames. ValueError for frames outside it."""
    if bad := [one.frame for one in pointed if not 0 <= one.frame < num_frames]:
        raise ValueError(f"frames {bad} are outside the {num_frames} frames that unipixel sampled")
    places = []
    for one in pointed:
        place = (
            torch.tensor(one.place, device=host.llm.device).view(1, -1, 2) * host.config.sam_size
        )
        labels = torch.tensor([[1] if len(one.place) == 2 else [2, 3]], device=host.llm.device)
        sparse = host.ref_encoder((place, labels), None, None)[0].flatten(1)
        places.append(
            (host.ref_proj_single if len(one.place) == 2 else host.ref_proj_double)(sparse)
        )
    moments = torch.tensor(
        [one.frame / (num_frames - 1) for one in pointed], device=host.llm.device
    )
    times = host.tem_proj(host.tem_pe(moments) + host.tem_emb.weight)
    return host.ref_proj(torch.cat([torch.cat(places), times], 1))


def region_tokens(
    host: "UniPixel", patches_nc: Tensor, grid: Tensor, regions_otyx: Tensor
) -> Tensor:
    """[n, D]: for each object and each frame pair in which it has cells, in this order, the mean of those cells.

    patches_nc: what the vision transformer says before its merger, window by window. regions_otyx: bool.
    ValueError if the regions are not of this grid.
    """
    t, h, w = (int(size) for size in grid[0])
    if regions_otyx.shape[1:] != (t, h // 2, w // 2):
        raise ValueError(
            f"regions must be [objects, {t}, {h // 2}, {w // 2}], not {list(regions_otyx.shape)}"
        )
    merger, config = host.visual.merger, host.config
    cells = merger.ln_q(patches_nc).reshape(t * h * w // 4, -1)
    if config.region_order == "raster":
        cells = cells[window_order(grid, config.vit_window // 28).argsort().to(cells.device)]
    cells_tnc = cells.unflatten(0, (t, -1))
    regions_otn = regions_otyx.flatten(2).to(cells.device)
    means = [
        cells_tnc[k, cells_n].mean(0)
        for one in regions_otn
        for k, cells_n in enumerate(one)
        if cells_n.any()
    ]
    return host.msk_proj(torch.stack(means)) if means else cells.new_zeros(0, host.spec.llm_dim)


def window_order(grid: Tensor, side: int) -> Tensor:
    """[t * h * w / 4]: the raster index of each cell in the vision transformer's order.

    Frame pair by frame pair, window by window of `side` x `side` cells, raster inside; the last ones are cut off.
    """
    t, h, w = (int(size) for size in grid[0])
    time, y, x = torch.meshgrid(
        torch.arange(t), torch.arange(h // 2), torch.arange(w // 2), indexing="ij"
    )
    windows = (time * h + y // side) * w + x // side
    return windows.flatten().argsort(stable=True)


def region_cells(masks_othw: Tensor, grid: Tensor) -> Tensor:
    """Masks [objects, T, H, W] of the sampled frames -> bool [objects, t, h / 2, w / 2]: cells touched in a frame pair.

    Resized (bilinear) to the size at which the host looks; an odd number of frames repeats the last one.
    """
    t, h, w = (int(size) for size in grid[0])
    if masks_othw.shape[1] % 2:
        masks_othw = torch.cat([masks_othw, masks_othw[:, -1:]], 1)
    if masks_othw.shape[1] != 2 * t:
        raise ValueError(f"masks of {masks_othw.shape[1]} frames do not fit a video of {2 * t}")
    pairs = masks_othw.float().unflatten(1, (t, 2)).amax(2)
    resized = interpolate(pairs, (14 * h, 14 * w), mode="bilinear", antialias=True)
    return max_pool2d(resized, 28) > 0


def fill(embeds_bld: Tensor, slots_bl: Tensor, tokens_nd: Tensor, name: str) -> Tensor:
    """`embeds_bld` with `tokens_nd` at the slots, in order. ValueError if their numbers differ."""
    if len(slots_bl) != 1 or int(slots_bl.sum()) != len(tokens_nd):
        raise ValueError(
            f"the prompt has {int(slots_bl.sum())} {name}, but {len(tokens_nd)} were given"
        )
    return embeds_bld.masked_scatter(slots_bl[..., None], tokens_nd.to(embeds_bld))
