"""What the released code does where the paper has its filtration head (`spec/model.md` section 3.2).

Three parts: a selector that compares the [BOX] vector with the proposer's embeddings, an additive helper that looks at
the frame, and the weight gamma between them. Names of parameters are the official checkpoint's, and scores equal its
scores. Thereafter, in the evaluation scripts and the chat, a filter that asks the mask model what each box makes it
see: it ranks without language, and keeping 1 means that an answer never has two objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from model.filtration import (
    FilterOutput,
    Masks,
    Selected,
    box_mlp,
    check,
    pool_regions,
    select,
    top,
)
from schemas.config import Config


class ReleaseFilterConfig(Config):
    """Preset `release`. threshold: on the confidence; top_k: boxes per token. prior_keep: boxes that the box-prior
    filter leaves (evaluation scripts 1, chat 4), None for no such filter; prior_min: its least score.
    supervision_token: as in `FiltrationConfig`; the release uses [BOX]."""

    kind: Literal["release"] = "release"
    supervision_token: Literal["box", "seg"] = "box"
    threshold: float = Field(default=0.4, ge=0, le=1)
    top_k: int = Field(default=16, ge=1)
    prior_keep: int | None = Field(default=1, ge=1)
    prior_min: float = Field(default=0.35, ge=0)

    def build(self, channels: Sequence[int] = (32, 64, 256), dim: int = 256) -> "ReleaseFilter":
        """The untrained filter."""
        return ReleaseFilter(self, channels, dim)


@dataclass
class ReleaseOutput(FilterOutput):
    """`boxes` are the raw proposals. The rest is computed by the release and then hardly used."""

    attention: Tensor = None  # type: ignore[assignment]
    """[N, P]: softmax of the selector's logits."""
    refined: Tensor = None  # type: ignore[assignment]
    """[N, dim]: the vector, plus what the attention gathers; the release reads it where [SEG] came without [BOX]."""
    predicted_boxes: Tensor = None  # type: ignore[assignment]
    """[N, P, 4] xyxy: regressed without reference to the proposal's box; for a loss at most."""

    def by_proposal(self) -> Tensor:
        return self.predicted_boxes


class ProposalSelector(nn.Module):
    """Dot products of the token's vector with the proposals' embeddings. 197,376 parameters, box head 132,356."""

    def __init__(self, dim: int = 256):
        super().__init__()
        self.seg_proj, self.prop_proj, self.fuse_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.box_head = box_mlp(2 * dim, dim)

    def forward(
        self, h_nd: Tensor, embeddings_pd: Tensor, objectness_p: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> logits [N, P] (plus log o if given), attention [N, P], refined vector [N, dim], boxes [N, P, 4]."""
        q_nd, k_pd = self.seg_proj(h_nd), self.prop_proj(embeddings_pd)
        logits_np = (q_nd @ k_pd.T).float() / q_nd.shape[1] ** 0.5
        if objectness_p is not None:
            logits_np = logits_np + objectness_p.float().clamp_min(1e-6).log()
        attention_np = logits_np.softmax(1)
        refined_nd = h_nd + self.fuse_proj(attention_np.to(embeddings_pd.dtype) @ embeddings_pd)
        grid = (len(q_nd), len(k_pd), -1)
        corners = (
            self.box_head(torch.cat([q_nd[:, None].expand(grid), k_pd.expand(grid)], -1))
            .float()
            .sigmoid()
        )
        first, second = corners.split(2, -1)
        boxes_np4 = torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)
        return logits_np, attention_np, refined_nd, boxes_np4


class RoiHelper(nn.Module):
    """A second opinion from the maps that the mask decoder reads: one query attends to 7 x 7 cells of each level.

    Keys are values. 510,465 parameters for levels of 32, 64 and 256 channels."""

    def __init__(self, channels: Sequence[int] = (32, 64, 256), dim: int = 256):
        super().__init__()
        self.query_proj, self.seg_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.level_token_proj = nn.ModuleList(nn.Linear(c, dim) for c in channels)
        self.level_pool_proj = nn.ModuleList(nn.Linear(c, dim) for c in channels)
        self.score_head = nn.Sequential(nn.Linear(3 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, h_nd: Tensor, maps: Sequence[Tensor], boxes_p4: Tensor) -> Tensor:
        """Vectors [N, dim], maps [1, C_l, H_l, W_l], boxes xyxy in shares of the frame -> logits [N, P]."""
        regions = [r.to(h_nd.dtype) for r in pool_regions(maps, boxes_p4, 7)]
        r_pud = torch.cat(
            [proj(r) for proj, r in zip(self.level_token_proj, regions, strict=True)], 1
        )
        p_pd = torch.stack(
            [proj(r.mean(1)) for proj, r in zip(self.level_pool_proj, regions, strict=True)]
        ).mean(0)
        q_pnd = self.query_proj(h_nd).expand(len(r_pud), -1, -1)
        z_npd = F.scaled_dot_product_attention(q_pnd, r_pud, r_pud).transpose(0, 1)
        h_npd = self.seg_proj(h_nd)[:, None].expand_as(z_npd)
        return self.score_head(torch.cat([z_npd, p_pd.expand_as(z_npd), h_npd], -1))[..., 0].float()


class ReleaseFilter(nn.Module):
    """Selector plus gamma times helper; same calls as `model.filtration.FiltrationHead`. 840,198 parameters."""

    reads: ClassVar[str] = "maps"
    """Which maps of `model.sam.Features` it pools; the release adds "no memory" to the coarsest beforehand."""

    def __init__(
        self,
        config: ReleaseFilterConfig | None = None,
        channels: Sequence[int] = (32, 64, 256),
        dim: int = 256,
    ):
        super().__init__()
        self.config = config or ReleaseFilterConfig()
        self.channels, self.dim = tuple(channels), dim
        self.proposal_selector = ProposalSelector(dim)
        self.roi_helper = RoiHelper(self.channels, dim)
        self.roi_fusion_gamma = nn.Parameter(torch.tensor(0.1))

    def forward(
        self,
        h_nd: Tensor,
        maps: Sequence[Tensor],
        boxes_p4: Tensor,
        objectness_p: Tensor,
        embeddings_pd: Tensor | None = None,
    ) -> ReleaseOutput:
        """As `FiltrationHead.forward`; embeddings_pd [P, dim] is needed. ValueError on other shapes.

        A proposal that should not take part is left out by the caller: its absence and the release's masking of
        padded rows give the same scores for the others.
        """
        check(self.channels, self.dim, h_nd, maps, boxes_p4, objectness_p, embeddings_pd)
        if embeddings_pd is None:
            raise ValueError("ReleaseFilter compares the proposals' embeddings: give embeddings_pd")
        dtype = self.proposal_selector.seg_proj.weight.dtype
        h_nd, embeddings_pd = h_nd.to(dtype), embeddings_pd.to(dtype)
        logits_np, attention_np, refined_nd, predicted_np4 = self.proposal_selector(
            h_nd, embeddings_pd, objectness_p
        )
        gamma = self.roi_fusion_gamma.float().clamp(0, 1)
        logits_np = logits_np + gamma * self.roi_helper(h_nd, maps, boxes_p4)
        index_nk = top(logits_np, None if self.training else self.config.top_k)
        return ReleaseOutput(
            logits=logits_np,
            confidence=logits_np.sigmoid(),
            index=index_nk,
            boxes=boxes_p4.float()[index_nk],
            attention=attention_np,
            refined=refined_nd,
            predicted_boxes=predicted_np4,
        )

    def select(self, output: FilterOutput, masks: Masks | None = None) -> list[Selected]:
        """Per token the offered boxes with confidence >= threshold, or the best; then the box-prior filter.

        masks: boxes [m, 4] -> boolean masks [m, H, W] of the mask model prompted with each box alone. ValueError if
        `prior_keep` is set and there is no `masks`.
        """
        chosen = select(output, self.config.threshold)
        if self.config.prior_keep is None:
            return chosen
        if masks is None:
            raise ValueError(
                "the box-prior filter looks at masks: give `masks`, or set filter.prior_keep=None"
            )
        return [self._most_plausible(one, masks) for one in chosen]

    def _most_plausible(self, one: Selected, masks: Masks) -> Selected:
        if len(one.boxes_m4) == 0:
            return one
        scores_m = box_prior_scores(one.boxes_m4, masks(one.boxes_m4))
        keep = box_prior_filter(scores_m, self.config.prior_min, self.config.prior_keep)
        return Selected(one.boxes_m4[keep], one.confidence_m[keep], one.index_m[keep], one.fallback)


def box_prior_scores(boxes_m4: Tensor, masks_mhw: Tensor) -> Tensor:
    """How well each box fits the mask that it prompts, in [0, 1]: boxes xyxy in shares of the frame, boolean masks.

    0.8 IoU(box, the mask's bounding box) + 0.2 / (1 + |ln(mask area / box area)|); a fifth of it if the mask covers
    less than 0.0001 or more than 0.9 of the frame; 0 without a mask. Boxes are cut to the frame first.
    """
    if masks_mhw.ndim != 3 or boxes_m4.shape != (len(masks_mhw), 4):
        raise ValueError(
            f"box prior: boxes [m, 4] and masks [m, H, W], got {list(boxes_m4.shape)} and {list(masks_mhw.shape)}"
        )
    boxes_m4, masks_mhw = boxes_m4.float().clamp(0, 1), masks_mhw.bool()
    height, width = masks_mhw.shape[1:]
    area_m = masks_mhw.float().mean((1, 2))
    there = area_m > 0
    tight_m4 = torch.zeros_like(boxes_m4)
    tight_m4[there] = masks_to_boxes(masks_mhw[there])
    tight_m4[there, 2:] += 1  # indices of the last pixels -> their far edges
    tight_m4 = tight_m4 / tight_m4.new_tensor([width, height, width, height])

    shared_m = (
        (torch.minimum(boxes_m4, tight_m4)[:, 2:] - torch.maximum(boxes_m4, tight_m4)[:, :2])
        .clamp_min(0)
        .prod(1)
    )
    size_m, tight_size_m = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes_m4, tight_m4))
    iou_m = shared_m / (size_m + tight_size_m - shared_m).clamp_min(1e-6)
    log_ratio_m = (area_m.clamp_min(1e-6) / size_m.clamp_min(1e-6)).log().abs()
    score_m = 0.8 * iou_m + 0.2 / (1 + log_ratio_m)
    return torch.where((area_m < 1e-4) | (area_m > 0.9), 0.2 * score_m, score_m) * there


def box_prior_filter(scores_m: Tensor, min_score: float = 0.35, keep: int | None = 1) -> Tensor:
    """Indices of at most `keep` scores (None: any number) that are >= min_score, best first; of the best if none is."""
    order = scores_m.argsort(descending=True, stable=True)
    passed = order[scores_m[order] >= min_score]
    return passed[:keep] if len(passed) else order[:1]
