"""The parts of groundingdino-py's model that are replaced, and the replacing. What and why: `groundingdino_model`."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Fusion(nn.Module):
    """Attention between image tokens v [B, N, C] and text tokens l [B, L, C], both ways, one score matrix.

    Masks: [B, N] and [B, L] bool, True at padding.
    """

    def __init__(self, theirs: Any):
        super().__init__()
        self.v_proj, self.values_v_proj, self.out_v_proj = (
            theirs.v_proj,
            theirs.values_v_proj,
            theirs.out_v_proj,
        )
        self.l_proj, self.values_l_proj, self.out_l_proj = (
            theirs.l_proj,
            theirs.values_l_proj,
            theirs.out_l_proj,
        )
        self.heads, self.scale = theirs.num_heads, theirs.scale

    def forward(
        self,
        v: Tensor,
        l: Tensor,  # noqa: E741  the package's name
        attention_mask_v: Tensor,
        attention_mask_l: Tensor,
    ) -> tuple[Tensor, Tensor]:
        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        scores = heads(self.v_proj(v) * self.scale) @ heads(self.l_proj(l)).transpose(
            -1, -2
        )  # [B, heads, N, L]
        to_text = scores.masked_fill(attention_mask_l[:, None, None], float("-inf")).softmax(-1)
        to_image = (
            scores.transpose(-1, -2)
            .masked_fill(attention_mask_v[:, None, None], float("-inf"))
            .softmax(-1)
        )
        from_text = (to_text @ heads(self.values_l_proj(l))).transpose(1, 2).flatten(2)
        from_image = (to_image @ heads(self.values_v_proj(v))).transpose(1, 2).flatten(2)
        return self.out_v_proj(from_text), self.out_l_proj(from_image)


class TextScores(nn.Module):
    """Logit of each query x [..., Q, C] for each token: a dot product, float32, -inf at padding. [..., Q, L]."""

    def forward(self, x: Tensor, text_dict: dict[str, Tensor]) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            logits = x.float() @ text_dict["encoded_text"].float().transpose(-1, -2)
        return logits.masked_fill(~text_dict["text_token_mask"][:, None], float("-inf"))


class Float32Linear(nn.Linear):
    """Outside autocast: in bfloat16's 8 bits, an offset of 100 cells is rounded to half cells."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.float(), self.weight, self.bias)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021, Eq. 3), on the package's parameters.

    levels: (height, width) of each level on the host. The sizes that come as tensors are asked for nothing but the
    scale of offsets: reading one on the host would wait for everything that the device has been given.
    """

    levels: list[tuple[int, int]]
    num_heads: int
    num_levels: int
    num_points: int
    sampling_offsets: nn.Module
    attention_weights: nn.Module
    value_proj: nn.Module
    output_proj: nn.Module

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        key_padding_mask: Tensor,
    ) -> Tensor:
        """query [B, Q, C], value [B, sum of H*W, C], reference_points [B, Q, levels, 2 | 4] in shares of the picture,
        spatial_shapes [levels, 2], key_padding_mask [B, sum of H*W] true at padding -> [B, Q, C]."""
        batch, count, _ = query.shape
        cells = (batch, count, self.num_heads, self.num_levels, self.num_points)
        value = self.value_proj(value).masked_fill(key_padding_mask[..., None], 0.0)
        offsets = self.sampling_offsets(query).view(*cells, 2)
        weights = self.attention_weights(query).view(*cells[:3], -1).softmax(-1)
        centre = reference_points[:, :, None, :, None, :2]
        if reference_points.shape[-1] == 2:
            places = centre + offsets / spatial_shapes.flip(-1)[None, None, None, :, None, :]
        else:
            places = (
                centre + offsets / self.num_points * reference_points[:, :, None, :, None, 2:] * 0.5
            )
        grids = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # [B * heads, Q, levels, points, 2]
        maps = (
            value.unflatten(-1, (self.num_heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        )  # [B * heads, C / heads, N]
        parts = maps.split([height * width for height, width in self.levels], -1)
        sampled = [
            functional.grid_sample(
                parts[level].unflatten(-1, size), grids[:, :, level], align_corners=False
            )
            for level, size in enumerate(self.levels)
        ]  # each [B * heads, C / heads, Q, points]
        weights = weights.transpose(1, 2).flatten(0, 1)[
            :, None
        ]  # [B * heads, 1, Q, levels * points]
        output = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1)
        return self.output_proj(output.unflatten(0, (batch, -1)).flatten(1, 2).transpose(1, 2))


def repair(net: Any) -> None:
    """In place, on a model that the package has built."""
    encoder, decoder = net.transformer.encoder, net.transformer.decoder
    levels: list[tuple[int, int]] = []

    def measure(
        _: nn.Module, args: tuple
    ) -> None:  # the transformer's first argument: a [B, C, H, W] per level
        levels[:] = [(source.shape[2], source.shape[3]) for source in args[0]]

    net.transformer.register_forward_pre_hook(measure)
    for layer in encoder.fusion_layers:
        layer.attn = Fusion(layer.attn)
    for layer in encoder.text_layers:
        layer.register_forward_pre_hook(_batch_major, with_kwargs=True)
    for layer in decoder.layers:
        layer.forward_ffn = partial(_feed_forward, layer)
    for module in [m for m in net.modules() if type(m).__name__ == "MultiScaleDeformableAttention"]:
        module.__class__, module.levels = DeformableAttention, levels
    boxes = [net.bbox_embed, net.transformer.enc_out_bbox_embed]
    offsets = [m.sampling_offsets for m in net.modules() if hasattr(m, "sampling_offsets")]
    for linear in [
        m for part in boxes for m in part.modules() if isinstance(m, nn.Linear)
    ] + offsets:
        linear.__class__ = Float32Linear  # in place: the box head is one object under many names
    net.class_embed = decoder.class_embed = nn.ModuleList(TextScores() for _ in decoder.layers)
    net.transformer.enc_out_class_embed = TextScores()


def _batch_major(layer: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """(B, L, L) -> (B * heads, L, L) with the heads of one row side by side, as nn.MultiheadAttention reads it."""
    return args, kwargs | {"src_mask": kwargs["src_mask"].repeat_interleave(layer.nhead, 0)}


def _feed_forward(layer: Any, tgt: Tensor) -> Tensor:
    """The decoder layer's own step, float32 as there, without its deprecated call that warns every time."""
    with torch.autocast(tgt.device.type, enabled=False):
        return layer.norm3(tgt.float() + layer.linear2(layer.linear1(tgt.float()).relu()))
