"""SAM2 with one more kind of prompt: vectors. `W_LV(h)` of a [SEG] token goes in beside the corners of a box.

The network is the official one (`trackers.sam2`), so official checkpoints fit by name. What is added here: sparse
prompts put together by the caller (the hosts differ in their order and padding), decoding one frame with or without
memory, and propagation of many objects in which any frame can be prompted anew (paper section 3.3). Everything can be
trained through; the package's own video predictor runs under inference mode only.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn
from torch.nn.functional import interpolate

from trackers import sam2 as network

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """What SAM2's image encoder says of F frames. Maps are finest first: strides 4, 8, 16."""

    fpn: list[Tensor]
    """256 channels each: what proposer and filtration head read."""
    maps: list[Tensor]
    """32, 64 and 256 channels: what the mask decoder reads (without memory)."""
    pos: list[Tensor]

    def __len__(self) -> int:
        return len(self.fpn[0])

    def rows(self, index: Tensor | list[int]) -> "Features":
        """One row per entry of `index`, a frame each; repeats allowed."""
        pick = torch.as_tensor(index, device=self.fpn[0].device)
        return Features(*([m[pick] for m in maps] for maps in (self.fpn, self.maps, self.pos)))


@dataclass(frozen=True)
class Prompt:
    """One prompt per object, N of them: the vectors of its segmentation token, and a box or none."""

    vectors_nk256: Tensor | None
    boxes_n4: Tensor | None = None
    """xyxy in [0, 1] of the frame. A row of NaN: this object has no box."""
    pads: int = 0
    """"Not a point" tokens between box and vectors (`spec/hosts.md` section 5 point 7; each host has its number)."""

    def __post_init__(self) -> None:
        if self.vectors_nk256 is None and self.boxes_n4 is None:
            raise ValueError("an empty prompt: give vectors, boxes or both")

    def __len__(self) -> int:
        return len(self.boxes_n4 if self.vectors_nk256 is None else self.vectors_nk256)  # type: ignore[arg-type]

    def rows(self, index: list[int]) -> "Prompt":
        vectors, boxes = (
            None if x is None else x[index] for x in (self.vectors_nk256, self.boxes_n4)
        )
        return Prompt(vectors, boxes, self.pads)


@dataclass(frozen=True)
class Decoded:
    """The mask decoder's answer for N objects on one frame each."""

    logits_n1hw: Tensor
    """A quarter of the model's picture on a side; of several masks the one with the best predicted IoU."""
    iou_n: Tensor
    object_score_n: Tensor
    """A logit: above 0 the object is thought to be in the picture."""
    ious_nm: Tensor
    """Predicted IoU of every mask the decoder offered."""


@dataclass
class _Group:
    """Objects with one history: they were prompted on the same frames, so they run as one batch."""

    objects: list[int]
    outputs: dict[str, dict[int, dict]]

    def part(self, rows: list[int]) -> "_Group":
        def pick(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[rows]
            return [v[rows] for v in value] if isinstance(value, list) else value

        outputs = {
            kind: {t: {name: pick(v) for name, v in out.items()} for t, out in entries.items()}
            for kind, entries in self.outputs.items()
        }
        return _Group([self.objects[r] for r in rows], outputs)


class Sam2(SAM2Base):
    """SAM2 2.0 or 2.1. `state_dict` names are the official ones. Frames come prepared (`prepare`).

    Parameters stay float32, beside a language model of any dtype: the package's position codes are float32, and its
    own bfloat16 is autocast.
    """

    memory_dtype: torch.dtype | None = None
    """Memories of past frames are rounded to this; the official predictor stores bfloat16."""

    def features(self, frames_f3ss: Tensor) -> Features:
        """The only pass of the image encoder that a frame gets: decoder, proposer and filtration head share it."""
        out = self.image_encoder(frames_f3ss)
        fpn, pos = list(out["backbone_fpn"]), list(out["vision_pos_enc"])
        maps = [
            self.sam_mask_decoder.conv_s0(fpn[0]),
            self.sam_mask_decoder.conv_s1(fpn[1]),
            fpn[2],
        ]
        return Features(fpn, maps, pos)

    def sparse(self, prompt: Prompt) -> Tensor:
        """[N, tokens, 256]: the corners of the box, padding, vectors, in this order."""
        encoder, n = self.sam_prompt_encoder, len(prompt)
        pad = encoder.not_a_point_embed.weight
        tokens = []
        if prompt.boxes_n4 is not None:
            boxes = prompt.boxes_n4
            corners = encoder._embed_boxes(boxes.nan_to_num() * self.image_size)
            tokens.append(torch.where(boxes.isnan().any(1)[:, None, None], pad, corners))
        tokens.append(pad.expand(n, prompt.pads, -1))
        if prompt.vectors_nk256 is not None:
            tokens.append(prompt.vectors_nk256)
        return torch.cat([t.to(pad.dtype) for t in tokens], 1)

    def without_memory(self, features: Features) -> Tensor:
        """The coarsest map as the decoder gets it on a frame that has no past: [F, 256, S/16, S/16]."""
        return features.maps[2] + self.no_mem_embed.reshape(1, -1, 1, 1)

    def decode(
        self,
        features: Features,
        prompt: Prompt,
        *,
        multimask: bool,
        embedding: Tensor | None = None,
    ) -> Decoded:
        """Masks of one frame without any past; row i of `features` is the frame of prompt i.

        embedding: [N, 256, S/16, S/16] to decode from in place of the frame's own map plus "no memory".
        The object score gates nothing here (as in the hosts' training).
        """
        if len(features) != len(prompt):
            raise ValueError(
                f"{len(prompt)} prompts need as many rows of features, not {len(features)}"
            )
        if embedding is None:
            embedding = self.without_memory(features)
        dense = self.sam_prompt_encoder.no_mask_embed.weight[:, :, None, None].expand_as(embedding)
        logits, ious, _, score = self.sam_mask_decoder(
            image_embeddings=embedding,
            image_pe=self.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=self.sparse(prompt),
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=features.maps[:2],
        )
        best = ious.argmax(1)
        rows = torch.arange(len(best), device=best.device)
        return Decoded(logits[rows, best, None], ious[rows, best], score[:, 0], ious)

    def propagate(
        self,
        features: Callable[[int], Features],
        num_frames: int,
        prompts: Mapping[int, tuple[list[int], Prompt]],
        *,
        multimask: bool,
        reverse: bool = False,
    ) -> Iterator[tuple[int, list[int], Decoded]]:
        """Follow every object from its first prompt to the last frame (with `reverse`, back to frame 0).

        features: of a frame, asked for once per frame, in the order of tracking. prompts: frame -> (objects, their
        prompts). A prompt of an object that is already followed starts it afresh from that frame's own features (its
        drift must not explain the new prompt), and stays in memory like the first one.
        Yields (frame, objects, decoded); masks of objects thought absent are -1024 everywhere.
        """
        if not prompts:
            raise ValueError("nothing to follow: no frame has a prompt")
        if bad := [t for t in prompts if not 0 <= t < num_frames]:
            raise ValueError(f"prompted frames {bad} are outside the video's {num_frames} frames")
        groups: list[_Group] = []
        for t in range(max(prompts), -1, -1) if reverse else range(min(prompts), num_frames):
            frame = features(t)
            objects, prompt = prompts.get(t, ([], None))
            groups = _regroup(groups, objects)
            done = []
            for group in groups:
                rows = [objects.index(name) for name in group.objects if name in objects]
                fresh = prompt.rows(rows) if prompt is not None and rows else None
                done.append(self._follow(t, frame, group, fresh, num_frames, multimask, reverse))
            yield t, [name for group in groups for name in group.objects], concatenate(done)

    def _follow(
        self,
        t: int,
        frame: Features,
        group: _Group,
        prompt: Prompt | None,
        num_frames: int,
        multimask: bool,
        reverse: bool,
    ) -> Decoded:
        n = len(group.objects)
        flat, pos = (
            [m.expand(n, -1, -1, -1).flatten(2).permute(2, 0, 1) for m in maps]
            for maps in (frame.maps, frame.pos)
        )
        sizes = [tuple(m.shape[-2:]) for m in frame.maps]
        points = None
        if prompt is not None:
            tokens = self.sparse(prompt)
            points = {
                "point_coords": tokens,
                "point_labels": tokens[..., 0],
                "multimask": multimask,
            }
        current, heads, _, _ = self._track_step(
            t,
            prompt is not None,
            flat,
            pos,
            sizes,
            points,
            None,
            group.outputs,
            num_frames,
            reverse,
            None,
        )
        _, _, ious, low, high, current["obj_ptr"], score = heads
        self._encode_memory_in_output(flat, sizes, points, True, high, score, current)
        if self.memory_dtype is not None:
            current["maskmem_features"] = current["maskmem_features"].to(self.memory_dtype)
        kept = {name: current[name] for name in ("maskmem_features", "maskmem_pos_enc", "obj_ptr")}
        group.outputs["cond_frame_outputs" if prompt is not None else "non_cond_frame_outputs"][
            t
        ] = kept
        self._forget(group.outputs["non_cond_frame_outputs"], t)
        return Decoded(low, ious.max(1).values, score[:, 0], ious)

    def _forget(self, entries: dict[int, dict], now: int) -> None:
        """Drop what no later frame reads: older memories, then older pointers (memory stays flat on long video)."""
        for t in list(entries):
            if abs(t - now) >= max(self.max_obj_ptrs_in_encoder, self.num_maskmem):
                del entries[t]

    def _build_sam_heads(self) -> None:
        super()._build_sam_heads()
        side = self.sam_image_embedding_size
        picture = (self.image_size, self.image_size)
        self.sam_prompt_encoder = _PromptEncoder(
            self.sam_prompt_embed_dim, (side, side), picture, 16
        )
        self.sam_mask_decoder.register_forward_hook(_present_in_training)

    def _use_multimask(self, is_init_cond_frame: bool, point_inputs: Any) -> bool:
        """The package counts points, and the two corners of a box would switch it off; hosts say it outright."""
        if point_inputs is not None and "multimask" in point_inputs:
            return point_inputs["multimask"]
        return super()._use_multimask(is_init_cond_frame, point_inputs)


def _present_in_training(
    decoder: nn.Module, _: Any, answer: tuple[Tensor, ...]
) -> tuple[Tensor, ...] | None:
    """Training masks are of objects that are there. SAM2 would set those it thinks absent to -1024 in memory mode,
    where no gradient comes back."""
    return (*answer[:3], answer[3].clamp_min(1.0)) if decoder.training else None


class _PromptEncoder(PromptEncoder):
    """The official one, which also takes sparse prompts that are tokens already, in place of coordinates."""

    def forward(self, points: Any, boxes: Any, masks: Any) -> tuple[Tensor, Tensor]:
        coordinates, _ = points
        if coordinates.shape[-1] == 2:
            return super().forward(points, boxes, masks)
        dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return coordinates, dense.expand(len(coordinates), -1, *self.image_embedding_size)


def _regroup(groups: list[_Group], prompted: list[int]) -> list[_Group]:
    """Groups in which all objects or none are prompted now; objects not seen before make a new one."""
    parts: list[_Group] = []
    for group in groups:
        for chosen in (True, False):
            rows = [i for i, name in enumerate(group.objects) if (name in prompted) is chosen]
            if len(rows) == len(group.objects):
                parts.append(group)
            elif rows:
                parts.append(group.part(rows))
    known = {name for group in groups for name in group.objects}
    if new := [name for name in prompted if name not in known]:
        parts.append(_Group(new, {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}))
    return parts


def concatenate(parts: list[Decoded]) -> Decoded:
    if len(parts) == 1:
        return parts[0]
    width = max(
        p.ious_nm.shape[1] for p in parts
    )  # prompted objects may have been offered fewer masks
    ious = [
        torch.nn.functional.pad(p.ious_nm, (0, width - p.ious_nm.shape[1]), value=float("nan"))
        for p in parts
    ]
    fields = (
        [p.logits_n1hw for p in parts],
        [p.iou_n for p in parts],
        [p.object_score_n for p in parts],
        ious,
    )
    return Decoded(*(torch.cat(f) for f in fields))


def build_sam(architecture: str, *, postprocess: bool, image_size: int | None = None) -> Sam2:
    """An untrained `Sam2`: "2.0-l", "2.1-b+", "2.0-tiny" ...; see `trackers.sam2.build`."""
    model: Any = network.build(
        architecture, "model.sam.Sam2", postprocess=postprocess, image_size=image_size
    )
    return model


def prepare(
    frames_thwc: NDArray[np.uint8] | Tensor, side: int, device: torch.device | str = "cpu"
) -> Tensor:
    """[T, H, W, 3] RGB -> [T, 3, side, side] float32: stretched (aspect ratio given up), ImageNet statistics."""
    if not isinstance(frames_thwc, Tensor):  # an array, or a part of a `Video`
        frames_thwc = torch.from_numpy(np.ascontiguousarray(frames_thwc))
    images = frames_thwc.to(device).permute(0, 3, 1, 2).float() / 255
    images = interpolate(images, (side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    return (images - mean) / std


def to_frame(logits_n1hw: Tensor, height: int, width: int) -> Tensor:
    """Mask logits -> boolean masks [N, height, width] of the frame (bilinear, above 0)."""
    return (
        interpolate(logits_n1hw.float(), (height, width), mode="bilinear", align_corners=False)[
            :, 0
        ]
        > 0
    )
