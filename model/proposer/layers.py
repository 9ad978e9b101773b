"""Layers of the proposers: attention over a feature map, full or deformable, and what stands around it.

Deformable attention is Zhu et al., "Deformable DETR" (ICLR 2021), in plain PyTorch. Names of parameters are those of
the released SPARROW proposer.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.proposer.config import ProposerConfig

Shapes = list[tuple[int, int]]
"""(height, width) of each feature level, finest first."""


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x in [0, 1] in float32, kept finite: values nearer than `eps` to 0 or 1 are moved there."""
    x = x.float().clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def sine_code(values: Tensor, width: int) -> Tensor:
    """[..., C] numbers in [0, 1] -> [..., C * width] float32: sine and cosine of each at width / 2 frequencies."""
    step = torch.arange(width // 2, device=values.device, dtype=torch.float32)
    angle = values.float()[..., None] * 2 * math.pi / 10000 ** (2 * step / width)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-3)


def cell_centres(shape: Sequence[int], device: torch.device) -> Tensor:
    """shape: [..., height, width] -> [height * width, 2] float32: (x, y) of a map's cells in raster order, as fractions
    of the frame."""
    height, width = shape[-2:]
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(
        0, 1
    )


def tokens(feature: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C], raster order."""
    return feature.flatten(2).transpose(1, 2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BoxMLP(nn.Module):
    """Three linear layers, [..., width] -> [..., 4]; the output is float32, for it is added to a box's logits."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, outputs) for outputs in (width, width, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x))))).float()


class Attention(nn.Module):
    """Multi-head attention with positions in query and key only."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, value: Tensor, key: Tensor | None = None) -> Tensor:
        """query: [B, Q, width], value and key: [B, N, width] -> [B, Q, width]. Without a key it is the query."""
        key = query if key is None else key
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DeformableAttention(nn.Module):
    """Attention to a few places around a box, whose offsets and weights the query itself gives."""

    def __init__(self, width: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, value: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """query: [B, Q, width]; value: [B, N, width], the levels of `shapes` one after the other -> [B, Q, width].

        reference: [B or 1, Q, levels or 1, 4] cxcywh in [0, 1]. An offset of `points` reaches the box's edge.
        Places and bilinear sampling are float32: bfloat16 knows a 64 x 64 map in steps of a quarter of a cell only.
        """
        places = (*query.shape[:2], self.heads, self.levels, self.points)
        offset = self.sampling_offsets(query).float().view(*places, 2) / (2 * self.points)
        weight = self.attention_weights(query).float().view(*places[:3], -1).softmax(-1)
        reference = reference[:, :, None, :, None]
        grid = 2 * (reference[..., :2] + offset * reference[..., 2:]) - 1
        values = (
            self.value_proj(value)
            .float()
            .unflatten(-1, (self.heads, -1))
            .permute(0, 2, 3, 1)
            .flatten(0, 1)
        )
        sampled = []
        for level, part in enumerate(
            values.split([height * width for height, width in shapes], -1)
        ):
            where = grid[:, :, :, level].transpose(1, 2).flatten(0, 1)
            sampled.append(
                F.grid_sample(part.unflatten(-1, shapes[level]), where, align_corners=False)
            )
        weight = weight.transpose(1, 2).flatten(0, 1)[:, None]
        mixed = (torch.cat(sampled, -1) * weight).sum(-1).view(query.transpose(1, 2).shape)
        return self.output_proj(mixed.transpose(1, 2).to(query.dtype))

    @torch.no_grad()
    def initialise(self) -> None:
        """As the authors do: head h looks in direction h, point p at p cells, all with the same weight."""
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = direction[:, None, None] * distance[:, None] * torch.ones(self.levels, 1, 1)
        self.sampling_offsets.bias.copy_(bias.flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)


class _Layer(nn.Module):
    """Post-norm residual steps, and the feed-forward one."""

    def __init__(self, config: ProposerConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.final_layer_norm(x + self.dropout(self.fc2(F.relu(self.fc1(x)))))


def make_attention(config: ProposerConfig) -> nn.Module:
    """To the feature map: deformable, or full for kind "detr"."""
    if config.kind == "deformable":
        return DeformableAttention(
            config.width, config.attention_heads, config.levels, config.points
        )
    return Attention(config.width, config.attention_heads)


class EncoderLayer(_Layer):
    """The map attends to itself."""

    def __init__(self, config: ProposerConfig):
        super().__init__(config)
        self.self_attn = make_attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, position: Tensor, *where: Any) -> Tensor:
        """x: [B, N, width]; position: the same or [1, N, width]; where: what the attention takes after the value."""
        x = self.self_attn_layer_norm(x + self.dropout(self.self_attn(x + position, x, *where)))
        return self.feed_forward(x)


class DecoderLayer(_Layer):
    """Queries attend to each other, then to the map."""

    def __init__(self, config: ProposerConfig):
        super().__init__(config)
        self.self_attn = Attention(config.width, config.attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.encoder_attn = make_attention(config)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, position: Tensor, memory: Tensor, *where: Any) -> Tensor:
        """x, position: [B, Q, width]; memory: [B, N, width]; where: as in `EncoderLayer`."""
        x = self.self_attn_layer_norm(x + self.dropout(self.self_attn(x + position, x)))
        x = self.encoder_attn_layer_norm(
            x + self.dropout(self.encoder_attn(x + position, memory, *where))
        )
        return self.feed_forward(x)
