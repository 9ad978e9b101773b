"""What GLUS remembers of its masks (`spec/hosts.md` sections 1.3 and 9)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from model.sam import Features, Sam2


class MemoryBank:
    """SAM2's memory encoder and attention without its pointers, temporal codes and rounding. The encoder sees the map
    that memory has gone into already, where SAM2's own sees the frame's. Nothing here has a gradient.

    Positions count the frames in the order in which they are followed.
    """

    def __init__(self, sam: Sam2, stride: int):
        self.sam, self.stride = sam, stride
        self.memories: dict[int, dict[int, Tensor]] = {}
        """Position -> object -> [64, S/16, S/16]."""
        self.pos: Tensor | None = None
        """Their spatial code: the same for all."""

    def reads(self, position: int) -> list[int]:
        """The previous frame, and six more on the grid of multiples of `stride`, from the last but one frame back."""
        grid = (position - 2) // self.stride * self.stride
        return [position - 1, *(grid - i * self.stride for i in range(self.sam.num_maskmem - 1))]

    @torch.no_grad()
    def condition(self, position: int, frame: Features, objects: Sequence[int]) -> Tensor:
        """The coarsest map of a frame as each object's memories change it: [N, 256, S/16, S/16]."""
        batches: dict[tuple[int, ...], list[int]] = {}
        for row, name in enumerate(objects):
            past = tuple(p for p in self.reads(position) if name in self.memories.get(p, {}))
            batches.setdefault(past, []).append(row)
        embedding = self.sam.without_memory(frame).repeat(len(objects), 1, 1, 1)
        for past, rows in batches.items():
            if past:
                memories = [torch.stack([self.memories[p][objects[r]] for r in rows]) for p in past]
                embedding[rows] = self._attend(frame, memories).to(embedding.dtype)
        return embedding

    def _attend(self, frame: Features, memories: list[Tensor]) -> Tensor:
        n, top, pos = len(memories[0]), frame.maps[2], self.pos
        assert pos is not None

        def flat(maps: Tensor) -> Tensor:
            return maps.expand(n, -1, -1, -1).flatten(2).permute(2, 0, 1)

        out = self.sam.memory_attention(
            curr=[flat(top)],
            curr_pos=[flat(frame.pos[2])],
            memory=torch.cat([flat(m) for m in memories]),
            memory_pos=torch.cat([flat(pos)] * len(memories)),
            num_obj_ptr_tokens=0,
        )
        return out.permute(1, 2, 0).reshape(n, *top.shape[1:])

    @torch.no_grad()
    def add(
        self, position: int, objects: Sequence[int], embedding: Tensor, logits_n1hw: Tensor
    ) -> None:
        """Remember masks of a frame, with the map they were decoded from; forget what will not be read again."""
        size = (self.sam.image_size, self.sam.image_size)
        masks = interpolate(
            logits_n1hw.float(), size, mode="bilinear", align_corners=False
        ).sigmoid()
        masks = masks * self.sam.sigmoid_scale_for_mem_enc + self.sam.sigmoid_bias_for_mem_enc
        out = self.sam.memory_encoder(embedding, masks.to(embedding.dtype), skip_mask_sigmoid=True)
        self.pos = out["vision_pos_enc"][0][:1]
        self.memories[position] = dict(zip(objects, out["vision_features"], strict=True))
        oldest = min(self.reads(position + 1))
        self.memories = {
            p: m
            for p, m in self.memories.items()
            if p == position or (p >= oldest and p % self.stride == 0)
        }
