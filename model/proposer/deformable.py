"""The class-agnostic proposer: a two-stage Deformable DETR over feature maps of a frozen mask model.

Paper, section 3.3; model spec, section 2.1. Names of parameters are those of the released proposer, so that its
weights load. Two things are the release's own: reference points stay at the initial box through all layers
(`iterative_refine` moves them), and two objectness heads, one per kind of training data.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.proposer.config import ProposerConfig
from model.proposer.layers import (
    BoxMLP,
    ChannelNorm,
    DecoderLayer,
    DeformableAttention,
    EncoderLayer,
    cell_centres,
    inverse_sigmoid,
    sine_code,
    tokens,
)
from model.proposer.output import ProposerOutput, make_output

PRIOR = 0.01
"""Objectness that a fresh head gives to everything."""


class InputProjection(nn.ModuleList):
    """Feature maps of the mask model -> one map of `width` channels per level."""

    def __init__(self, config: ProposerConfig):
        self.lateral, self.in_channels = min(config.levels, config.maps), config.in_channels
        projections = []
        for level in range(config.levels):
            channels = config.in_channels if level <= self.lateral else config.width
            if level < self.lateral:
                convolution = nn.Conv2d(channels, config.width, 1)
            else:
                convolution = nn.Conv2d(channels, config.width, 3, stride=2, padding=1)
            projections.append(nn.Sequential(convolution, ChannelNorm(config.width, eps=1e-6)))
        super().__init__(projections)

    def forward(self, maps: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """maps: [B, C, H, W] or several, finest first -> [B, width, h, w] per level, finest first."""
        used = self._check([maps] if isinstance(maps, Tensor) else list(maps))
        levels: list[Tensor] = []
        for level, project in enumerate(self):
            if level < self.lateral:
                source = used[level]
            else:  # the first further level is made of the mask model's last map, not of its projection
                source = used[-1] if level == self.lateral else levels[-1]
            levels.append(project(source))
        return levels

    def _check(self, maps: list[Tensor]) -> list[Tensor]:
        if len(maps) < self.lateral:
            raise ValueError(
                f"{len(maps)} feature maps, this proposer reads the last {self.lateral}"
            )
        used = maps[-self.lateral :]
        for feature in used:
            if (
                feature.ndim != 4
                or feature.shape[1] != self.in_channels
                or feature.shape[0] != used[0].shape[0]
            ):
                wanted = f"[{used[0].shape[0]}, {self.in_channels}, H, W]"
                raise ValueError(f"feature map has shape {list(feature.shape)}, expected {wanted}")
        return used


class Stack(nn.Module):
    """Layers under the name `layers`."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Transformer(nn.Module):
    """What the deformable proposer and the plain one share: layers, heads, and the codes of places."""

    def __init__(self, config: ProposerConfig):
        super().__init__()
        self.config, width = config, config.width
        self.level_embed = nn.Parameter(torch.empty(config.levels, width))
        self.bbox_embed = nn.ModuleList(
            BoxMLP(width) for _ in range(config.decoder_layers + 1)
        )  # last: the encoder's
        self.class_embed_enc = nn.Linear(width, 1)
        for head in config.heads:
            self.add_module(
                f"class_embed_{head}",
                nn.ModuleList(nn.Linear(width, 1) for _ in self.bbox_embed[:-1]),
            )
        self.encoder = Stack([EncoderLayer(config) for _ in range(config.encoder_layers)])
        self.decoder = Stack([DecoderLayer(config) for _ in range(config.decoder_layers)])
        self.query_position_embeddings = nn.Embedding(config.queries, width)
        self.input_dropout = nn.Dropout(config.dropout)

    def embed(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps [B, width, h, w] -> tokens [B, N, width] and their position code [1, N, width], level after level."""
        codes = []
        for feature, level_code in zip(levels, self.level_embed, strict=True):
            centres_yx = cell_centres(feature.shape, feature.device).flip(-1)
            codes.append(sine_code(centres_yx, self.config.width // 2) + level_code)
        x = torch.cat([tokens(feature) for feature in levels], 1)
        return self.input_dropout(x), torch.cat(codes)[None].to(x.dtype)

    def classify(self, hidden: list[Tensor]) -> dict[str, Tensor]:
        """Embeddings [B, Q, width] per layer -> logits [B, L, Q] per head, float32."""
        logits: dict[str, Tensor] = {}
        for head in self.config.heads:
            layers = zip(self.get_submodule(f"class_embed_{head}").children(), hidden, strict=True)
            logits[head] = torch.stack(
                [classifier(x)[..., 0].float() for classifier, x in layers], 1
            )
        return logits

    @torch.no_grad()
    def initialise(self) -> None:
        """Xavier, and a prior of PRIOR for every objectness."""
        initialise(self)
        nn.init.normal_(self.level_embed)
        for head in ("enc", *self.config.heads):
            for module in self.get_submodule(f"class_embed_{head}").modules():
                if isinstance(module, nn.Linear):
                    nn.init.constant_(module.bias, -math.log((1 - PRIOR) / PRIOR))


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Xavier for what multiplies, 0 for what is added; deformable attention its own way; norms as they are."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            part.initialise()


class DeformableTransformer(Transformer):
    """Two stages: the encoder's tokens say where objects may be, the decoder refines the best of them."""

    def __init__(self, config: ProposerConfig):
        super().__init__(config)
        width = config.width
        # The released files know every head under a second name, inside the decoder.
        self.decoder.bbox_embed = self.bbox_embed
        for head in ("enc", *config.heads):
            self.decoder.add_module(
                f"class_embed_{head}", self.get_submodule(f"class_embed_{head}")
            )
        self.enc_output = nn.Linear(width, width)
        self.enc_output_norm = nn.LayerNorm(width)
        self.pos_trans = nn.Linear(2 * width, 2 * width)
        self.pos_trans_norm = nn.LayerNorm(2 * width)

    @torch.no_grad()
    def initialise(self) -> None:
        """As `Transformer`; besides, box heads start with no change to their reference."""
        super().initialise()
        for head in self.bbox_embed:
            nn.init.zeros_(head.get_submodule("layers.2").get_parameter("weight"))

    def forward(self, levels: list[Tensor]) -> ProposerOutput:
        """levels: [B, width, h, w] each, finest first."""
        shapes = [(feature.shape[-2], feature.shape[-1]) for feature in levels]
        x, position = self.embed(levels)
        memory = self.encode(x, position, shapes)
        objectness, box_logits = self.first_stage(memory, shapes)
        if objectness.shape[1] < self.config.queries:
            raise ValueError(
                f"{objectness.shape[1]} tokens in feature maps of {shapes}, fewer than {self.config.queries} queries: "
                "use larger maps, more levels, or a config with fewer queries"
            )
        indices = objectness.topk(self.config.queries, dim=1).indices
        initial = box_logits.detach().gather(1, indices[..., None].expand(-1, -1, 4)).sigmoid()
        hidden, boxes, refined = self.decode(memory, initial, shapes)
        return make_output(
            hidden[-1],
            boxes,
            self.classify(hidden),
            encoder_objectness_logit=objectness,
            encoder_box_logits=box_logits,
            encoder_last=memory,
            two_stage_indices=indices,
            init_reference_cxcywh=initial,
            decoder_hidden_all_layers=torch.stack(hidden, 1),
            refined_reference_all_layers=refined,
        )

    def encode(self, x: Tensor, position: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """Tokens [B, N, width] -> the same after the encoder."""
        centres = torch.cat([cell_centres(shape, x.device) for shape in shapes])
        places = []
        for height, width in shapes:
            # A box so large that an offset of 1 is one cell of the level that is looked at.
            sides = [
                torch.full_like(centres[:, :1], 2 * self.config.points / side)
                for side in (width, height)
            ]
            places.append(torch.cat([centres, *sides], -1))
        reference = torch.stack(places, 1)[None]
        for layer in self.encoder.layers:
            x = layer(x, position, reference, shapes)
        return x

    def first_stage(self, memory: Tensor, shapes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Encoder tokens -> objectness logits [B, N] and box logits [B, N, 4], both float32.

        A cell's anchor is centred on it, 0.05 wide and high on the finest level, twice that on each coarser one.
        Anchors that reach 0.01 or 0.99 in any number are invalid: their box logits are infinite, and since their token
        is blanked they all have one objectness.
        """
        parts = []
        for level, shape in enumerate(shapes):
            centres = cell_centres(shape, memory.device)
            parts.append(torch.cat([centres, torch.full_like(centres, 0.05 * 2**level)], -1))
        anchors = torch.cat(parts)
        invalid = ((anchors <= 0.01) | (anchors >= 0.99)).any(-1, keepdim=True)
        candidates = self.enc_output_norm(self.enc_output(memory.masked_fill(invalid, 0)))
        box_logits = self.bbox_embed[-1](candidates) + anchors.logit().masked_fill(
            invalid, math.inf
        )
        return self.class_embed_enc(candidates)[..., 0].float(), box_logits

    def decode(
        self, memory: Tensor, initial: Tensor, shapes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Initial boxes [B, Q, 4] -> per layer: hidden [B, Q, width]; stacked [B, L, Q, 4]: boxes, references left."""
        width = self.config.width
        code = self.pos_trans_norm(self.pos_trans(sine_code(initial, width // 2).to(memory.dtype)))
        position = code[..., :width]
        x = self.query_position_embeddings.weight.expand(len(memory), -1, -1)
        around = before = initial  # where attention looks; what the next box is a change of
        hidden, boxes, refined = [], [], []
        for layer, box_head in zip(self.decoder.layers, self.bbox_embed, strict=False):
            x = layer(x, position, memory, around[:, :, None], shapes)
            change = box_head(x)
            hidden.append(x)
            boxes.append((change + inverse_sigmoid(before)).sigmoid())
            if self.config.iterative_refine:
                around = before = boxes[-1].detach()
            else:
                before = (change + inverse_sigmoid(initial)).sigmoid()
            refined.append(before)
        return hidden, torch.stack(boxes, 1), torch.stack(refined, 1)


class DeformableProposer(nn.Module):
    """Feature maps of a frame in, `config.queries` boxes with objectness and embedding out.

    11,181,225 parameters by default; with the three linear layers of the proposal selector the 11.38 M of Table 11.
    """

    def __init__(self, config: ProposerConfig | None = None):
        super().__init__()
        self.config = config or ProposerConfig()
        if self.config.kind != "deformable":
            raise ValueError(
                f'kind is "{self.config.kind}", DeformableProposer is "deformable": use build_proposer'
            )
        self.ddetr_transformer = DeformableTransformer(self.config)
        self.input_proj = InputProjection(self.config)
        initialise(self.input_proj)
        self.ddetr_transformer.initialise()
        self.register_load_state_dict_pre_hook(_complete_aliases)

    def forward(self, maps: Tensor | Sequence[Tensor]) -> ProposerOutput:
        """maps: [B, 256, H, W], or several, finest first, of which the last `config.levels` are read (with fewer,
        further levels are made by convolution). A frame's result does not depend on the others of its batch.

        ValueError: too few maps, a wrong shape, or fewer tokens than queries.
        """
        return self.ddetr_transformer(self.input_proj(maps))


def _complete_aliases(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Heads are stored twice, or, where a file format refuses shared tensors, under one of their two names."""
    for one, another in (("", "decoder."), ("decoder.", "")):
        start = f"{prefix}ddetr_transformer.{one}"
        for name in [
            n for n in state if n.startswith((f"{start}bbox_embed.", f"{start}class_embed_"))
        ]:
            other = f"{prefix}ddetr_transformer.{another}{name.removeprefix(start)}"
            twin = state.setdefault(other, state[name])
            if twin is not state[name] and not torch.equal(twin, state[name]):
                raise ValueError(
                    f"{name} and {other} are one tensor of the proposer, but differ in this file"
                )
