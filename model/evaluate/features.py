"""The image encoder's work on a video, done once for all questions about it."""

from collections.abc import Container
from typing import TYPE_CHECKING

import torch

from model.hosts.base import Frames, Host
from model.sam import Features

if TYPE_CHECKING:
    from torch import Tensor

CPU_BYTES = 2 << 30


class Kept:
    """`Host.sam_features` of frames [T, H, W, 3], kept for the next question in a bounded number of bytes.

    The first frames that fit stay, and of the others the latest: every question goes from the first frame to the last,
    so that keeping what was used last would keep nothing of use. boxed: frames whose whole feature pyramid is needed,
    for proposals; of the others only what SAM2 reads is kept. budget: bytes; by default a quarter of what is free on
    the GPU, else 2 GiB.
    """

    def __init__(
        self, host: Host, frames: Frames, boxed: Container[int], budget: int | None = None
    ):
        self.host, self.frames, self.boxed = host, frames, boxed
        where = host.sam.no_mem_embed.device
        free = torch.cuda.mem_get_info(where)[0] // 4 if where.type == "cuda" else CPU_BYTES
        self.left = free if budget is None else budget
        self._kept: dict[int, Features] = {}
        self._latest: tuple[int, Features] | None = None
        self._pos: list[Tensor] = []

    def __call__(self, t: int) -> Features:
        if t in self._kept:
            return self._kept[t]
        if self._latest is None or self._latest[0] != t:
            self._latest = t, self._look(t)
        return self._latest[1]

    def _look(self, t: int) -> Features:
        found = self.host.sam_features(self.frames[t : t + 1])
        self._pos = self._pos or found.pos  # position codes are those of any frame
        slim = Features(found.fpn if t in self.boxed else found.fpn[-1:], found.maps, self._pos)
        size = sum(m.nbytes for m in {id(m): m for m in (*slim.fpn, *slim.maps)}.values())
        if size <= self.left:
            self.left -= size
            self._kept[t] = slim
        return found
