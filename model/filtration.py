"""The filtration head: which proposals does the sentence mean, and where exactly are they? (paper section 3.3)

The paper's Eq. 6-10 are lost in the available text. Eq. 6-9 are here as others report them (second-hand: "reported"
in this project), Eq. 10 is the reconstruction of `spec/model.md` section 3.1. h is W_LV^BOX of a [BOX] state (e_BOX in
the paper), F_l the levels of the mask model's feature pyramid, b_i and o_i proposals and their objectness.
`model.release` has what the released code does instead, behind the same interface.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import box_convert, nms, roi_align
from transformers.utils import ModelOutput

from schemas.config import Config

Masks = Callable[[Tensor], Tensor]
"""Boxes [m, 4] -> boolean masks [m, H, W] of the mask model prompted with each box alone."""

_EPS = 1e-6  # objectness below this counts as this
_MAX_LOG_SCALE = math.log(1000 / 16)  # a refined box is at most 62.5 times as wide as its proposal


class FiltrationConfig(Config):
    """Preset `paper`. where: "head" pools visual features (Eq. 6-7); "mllm" lets language choose among the proposals'
    own embeddings and boxes (Table 5B). supervision_token: whose state the caller gives as h (Table 5A).

    descriptor: what the score and the refinement read. "concatenated" is Eq. 8 and 9 as reported: s = W_2 ReLU(W_1 c)
    and delta = f_ref(c), both of the concatenation c = [Z_i; G_i; h]. "fused" is this project's earlier reconstruction:
    an MLP makes one vector of c, the score is one linear layer of it, and the refinement reads it too.

    top_k: proposals refined and offered per token. fusion (Eq. 10): "product" is sigmoid(s)^weight * o^(1 - weight),
    "logit_sum" is sigmoid(s + log o), as released. threshold: tau, on the confidence. nms: IoU above which the less
    confident of two boxes goes. levels: how many of the coarsest pyramid levels are pooled. refine: Eq. 9.
    """

    kind: Literal["paper"] = "paper"
    where: Literal["head", "mllm"] = "head"
    supervision_token: Literal["box", "seg"] = "box"
    descriptor: Literal["concatenated", "fused"] = "concatenated"
    top_k: int = Field(default=16, ge=1)
    fusion: Literal["product", "logit_sum"] = "product"
    weight: float = Field(default=0.5, gt=0, le=1)
    threshold: float = Field(default=0.5, ge=0, le=1)
    nms: float = Field(default=0.8, gt=0, le=1)
    roi_size: int = Field(default=7, ge=1)
    levels: int = Field(default=3, ge=1, le=3)
    refine: bool = True

    def build(self, channels: Sequence[int] = (256, 256, 256), dim: int = 256) -> "FiltrationHead":
        """The untrained head."""
        return FiltrationHead(self, channels, dim)


@dataclass
class FilterOutput(ModelOutput):
    """N tokens against P proposals. Boxes are xyxy, shares of the frame."""

    logits: Tensor
    """[N, P] float32, what the classification loss is taken of: s, or s + log o with `fusion="logit_sum"`."""
    confidence: Tensor = None  # type: ignore[assignment]
    """[N, P] float32, c of Eq. 10."""
    index: Tensor = None  # type: ignore[assignment]
    """[N, k] proposals, by descending score."""
    boxes: Tensor = None  # type: ignore[assignment]
    """[N, k, 4] float32: those proposals, refined if the config says so."""
    deltas: Tensor | None = None
    """[N, k, 4] float32, of Eq. 9."""

    def by_proposal(self) -> Tensor:
        """Refined boxes in the order of the proposals [N, P, 4], for the box losses of Eq. 13.

        ValueError unless all proposals were refined (`FiltrationHead.forward` does that in training mode)."""
        if self.index.shape != self.logits.shape:
            raise ValueError(
                f"{self.index.shape[1]} of {self.logits.shape[1]} proposals are refined: use training mode"
            )
        return torch.zeros_like(self.boxes).scatter(
            1, self.index[..., None].expand_as(self.boxes), self.boxes
        )


@dataclass(frozen=True)
class Selected:
    """What one token means: m boxes, most confident first. None of them only if there were no proposals at all."""

    boxes_m4: Tensor
    confidence_m: Tensor
    index_m: Tensor
    """Their numbers among the proposals."""
    fallback: bool
    """No proposal reached the threshold: this is the best of those that did not."""


class FiltrationHead(nn.Module):
    """Scores and refines proposals for every [BOX] token at once (Eq. 6-10).

    channels: of the pyramid levels given to `forward`, finest first. Parameters at the defaults: 987,141 (regions
    592,128, score 197,121, refinement 197,892); 462,085 with `where="mllm"`. With `descriptor="fused"`: 921,861 and
    396,805.
    """

    reads: ClassVar[str] = "fpn"
    """Which maps of `model.sam.Features` it pools."""

    def __init__(
        self,
        config: FiltrationConfig | None = None,
        channels: Sequence[int] = (256, 256, 256),
        dim: int = 256,
    ):
        super().__init__()
        self.config = config = config or FiltrationConfig()
        if config.levels > len(channels):
            raise ValueError(
                f"filter.levels={config.levels}, but only {len(channels)} feature maps: {list(channels)}"
            )
        self.channels, self.dim = tuple(channels), dim
        self.context = (
            RegionContext(self.channels[-config.levels :], dim, config.roi_size)
            if config.where == "head"
            else ProposalContext(dim)
        )
        width = 3 * dim  # of c = [Z; G; h]
        self.fuse: nn.Sequential | None = None
        self.score: nn.Module
        if config.descriptor == "fused":
            self.fuse = nn.Sequential(
                nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU()
            )
            width = dim
            self.score = nn.Linear(width, 1)
        else:
            self.score = nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, 1))
        self.refine = box_mlp(width, dim) if config.refine else None

    def forward(
        self,
        h_nd: Tensor,
        maps: Sequence[Tensor],
        boxes_p4: Tensor,
        objectness_p: Tensor,
        embeddings_pd: Tensor | None = None,
    ) -> FilterOutput:
        """h_nd: [N, dim], a row per token. maps: [1, C_l, H_l, W_l] each, finest first, of the one frame.
        boxes_p4: xyxy, shares of the frame; objectness_p: in [0, 1]; embeddings_pd: [P, dim] of the proposer's
        decoder, which `where="mllm"` needs. ValueError on other shapes.

        k is `top_k` at most. In training it is P: the box losses of Eq. 13 need the positives, wherever they rank.
        """
        config, dtype = self.config, next(self.score.parameters()).dtype
        embeddings_pd = embeddings_pd if config.where == "mllm" else None
        check(self.channels, self.dim, h_nd, maps, boxes_p4, objectness_p, embeddings_pd)
        h_nd, boxes_p4 = h_nd.to(dtype), boxes_p4.float()
        z_npd, p_pd = self.context(h_nd, maps[-config.levels :], boxes_p4, embeddings_pd)
        h_npd = h_nd[:, None].expand_as(z_npd)
        c_npd = torch.cat([z_npd, p_pd.expand_as(z_npd), h_npd], -1)
        if self.fuse is not None:
            c_npd = self.fuse(c_npd)
        s_np = self.score(c_npd)[..., 0].float()  # Eq. 8, before the sigmoid

        log_o_p = objectness_p.float().clamp_min(_EPS).log()
        if config.fusion == "logit_sum":
            s_np = s_np + log_o_p
            confidence_np = s_np.sigmoid()
        else:
            confidence_np = (
                config.weight * F.logsigmoid(s_np) + (1 - config.weight) * log_o_p
            ).exp()

        index_nk = top(s_np, None if self.training else config.top_k)
        boxes_nk4, deltas_nk4 = boxes_p4[index_nk], None
        if self.refine is not None:
            rows = torch.arange(len(index_nk), device=index_nk.device)[:, None]
            deltas_nk4 = self.refine(c_npd[rows, index_nk]).float()  # Eq. 9
            boxes_nk4 = apply_deltas(boxes_nk4, deltas_nk4)
        return FilterOutput(s_np, confidence_np, index_nk, boxes_nk4, deltas_nk4)

    def select(self, output: FilterOutput, masks: Masks | None = None) -> list[Selected]:
        """Per token the boxes with confidence >= tau after NMS; the best one if none has. Eq. 10.

        masks: not used; `model.release.ReleaseFilter` may ask for it.
        """
        return select(output, self.config.threshold, self.config.nms)


class RegionContext(nn.Module):
    """Eq. 6 and 7: what the frame shows in each proposal, once as a plain mean and once as the sentence looks at it."""

    def __init__(self, channels: Sequence[int], dim: int, roi_size: int):
        super().__init__()
        self.roi_size = roi_size
        self.tokens = nn.ModuleList(nn.Linear(c, dim) for c in channels)  # phi
        self.pooled = nn.ModuleList(nn.Linear(c, dim) for c in channels)  # phi'
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def forward(
        self, h_nd: Tensor, maps: Sequence[Tensor], boxes_p4: Tensor, _: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """-> z [N, P, dim], the descriptor of each proposal for each token, and p [P, dim]."""
        regions = [r.to(h_nd.dtype) for r in pool_regions(maps, boxes_p4, self.roi_size)]
        r_pud = torch.cat([phi(r) for phi, r in zip(self.tokens, regions, strict=True)], 1)  # Eq. 6
        p_pd = torch.stack(
            [phi(r.mean(1)) for phi, r in zip(self.pooled, regions, strict=True)]
        ).mean(0)
        q_pnd = self.query(h_nd).expand(len(r_pud), -1, -1)
        z_pnd = F.scaled_dot_product_attention(
            q_pnd, self.key(r_pud), self.value(r_pud)
        )  # Eq. 7, summed over u
        return z_pnd.transpose(0, 1), p_pd


class ProposalContext(nn.Module):
    """Table 5B, "MLLM-side": a choice among proposals as the proposer describes them, without a look at the pixels."""

    def __init__(self, dim: int):
        super().__init__()
        self.embedding, self.box = nn.Linear(dim, dim), nn.Linear(4, dim)

    def forward(
        self, h_nd: Tensor, _: Sequence[Tensor], boxes_p4: Tensor, embeddings_pd: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """-> the embedding [N, P, dim] of each proposal, the same for each token, and its box [P, dim]."""
        if embeddings_pd is None:
            raise ValueError(
                "filter.where='mllm' chooses by the proposals' embeddings: give embeddings_pd"
            )
        z_pd = self.embedding(embeddings_pd.to(h_nd.dtype))
        p_pd = self.box(box_convert(boxes_p4, "xyxy", "cxcywh").to(h_nd.dtype))
        return z_pd.expand(len(h_nd), -1, -1), p_pd


def box_mlp(width: int, dim: int) -> nn.Sequential:
    """Linear, ReLU, Linear to 4 numbers, which are 0 until it is trained."""
    last = nn.Linear(dim, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, dim), nn.ReLU(), last)


def pool_regions(maps: Sequence[Tensor], boxes_p4: Tensor, size: int) -> list[Tensor]:
    """RoIAlign of boxes (xyxy, shares of the frame) on maps [1, C, H, W] -> [P, size * size, C] float32 per map."""
    regions = []
    for feature_map in maps:
        height, width = feature_map.shape[-2:]
        boxes = boxes_p4.float() * boxes_p4.new_tensor(
            [width, height, width, height], dtype=torch.float32
        )
        regions.append(
            roi_align(feature_map.float(), [boxes], size, aligned=True).flatten(2).transpose(1, 2)
        )
    return regions


def apply_deltas(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Eq. 9: xyxy [..., 4] moved by (dx, dy, dw, dh) [..., 4], in units of each box's own size, cut to [0, 1]."""
    cx, cy, w, h = box_convert(boxes, "xyxy", "cxcywh").unbind(-1)
    dx, dy, dw, dh = deltas.unbind(-1)
    w2, h2 = w * dw.clamp(max=_MAX_LOG_SCALE).exp(), h * dh.clamp(max=_MAX_LOG_SCALE).exp()
    return box_convert(torch.stack([cx + dx * w, cy + dy * h, w2, h2], -1), "cxcywh", "xyxy").clamp(
        0, 1
    )


def top(scores_np: Tensor, k: int | None) -> Tensor:
    """Indices [N, min(k, P)] of the highest scores, best first; equal ones in their order."""
    return scores_np.argsort(stable=True, dim=1, descending=True)[:, :k]


def select(output: FilterOutput, threshold: float, iou: float | None = None) -> list[Selected]:
    """Per token the offered boxes with confidence >= threshold, best first, without those that overlap a better one
    by more than `iou`. If none is confident enough, the best one, marked as a fallback."""
    chosen = []
    for boxes_k4, index_k, confidence_p in zip(
        output.boxes, output.index, output.confidence, strict=True
    ):
        confidence_k = confidence_p[index_k]
        order = confidence_k.argsort(descending=True, stable=True)
        passed = order[confidence_k[order] >= threshold]
        keep = passed if len(passed) else order[:1]
        if iou is not None:
            keep = keep[nms(boxes_k4[keep], confidence_k[keep], iou)]
        fallback = len(passed) == 0 and len(order) > 0
        chosen.append(Selected(boxes_k4[keep], confidence_k[keep], index_k[keep], fallback))
    return chosen


def check(
    channels: Sequence[int],
    dim: int,
    h_nd: Tensor,
    maps: Sequence[Tensor],
    boxes_p4: Tensor,
    objectness_p: Tensor,
    embeddings_pd: Tensor | None,
) -> None:
    """ValueError, with the shape that is wrong, unless the inputs of a filter fit it and each other."""
    count = len(boxes_p4)
    shapes: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("h_nd", h_nd, (len(h_nd), dim)),
        ("boxes_p4", boxes_p4, (count, 4)),
        ("objectness_p", objectness_p, (count,)),
        ("embeddings_pd", embeddings_pd, (count, dim)),
    ]
    for name, tensor, wanted in shapes:
        if tensor is not None and tensor.shape != wanted:
            raise ValueError(f"filter: {name} must be {list(wanted)}, got {list(tensor.shape)}")
    if [m.shape[:2] for m in maps if m.ndim == 4] != [(1, c) for c in channels]:
        wanted_maps = ", ".join(f"[1, {c}, H, W]" for c in channels)
        raise ValueError(
            f"filter: maps must be {wanted_maps} (one frame), got {[list(m.shape) for m in maps]}"
        )
