"""Losses: of the proposer (Eq. 12), of masks (Eq. 11), of the filter head (Eq. 13); and oracle recall (Table 12).

Boxes are xyxy in [0, 1] of the frame. Every loss is float32 whatever the network's dtype. The dictionaries hold plain
terms under the names of the DETR family, and their weighted sum under "total".
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import (
    box_convert,
    box_iou,
    generalized_box_iou,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from model.proposer.config import Head
from model.proposer.output import ProposerOutput
from schemas.config import Config

IGNORE = -1
"""In target masks: this pixel does not count. Also the label of a proposal that is neither positive nor negative."""


# --- proposer (Eq. 12) ---------------------------------------------------------------------------------------------


class ProposerLossConfig(Config):
    """Weights of matching (cost_*) and loss; the released values (model spec, section 2.3).

    objectness: "focal", as released; "bce", as Eq. 12 is written. alpha, gamma: of the focal terms.
    """

    objectness: Literal["focal", "bce"] = "focal"
    objectness_weight: float = Field(default=2.0, ge=0)
    l1_weight: float = Field(default=5.0, ge=0)
    giou_weight: float = Field(default=2.0, ge=0)
    cost_objectness: float = Field(default=2.0, ge=0)
    cost_l1: float = Field(default=5.0, ge=0)
    cost_giou: float = Field(default=2.0, ge=0)
    alpha: float = Field(default=0.25, ge=0, le=1)
    gamma: float = Field(default=2.0, ge=0)


def proposer_loss(
    output: ProposerOutput,
    targets: Sequence[Tensor],
    head: Head = "coco",
    config: ProposerLossConfig | None = None,
) -> dict[str, Tensor]:
    """Eq. 12 for every decoder layer, and for the dense prediction of the encoder where there is one.

    targets: one [n, 4] per frame, xyxy in [0, 1]; n may be 0. head: the objectness head of the batch's data source.
    -> scalars loss_ce, loss_bbox, loss_giou of the last layer; the same with suffix _0, _1 ... of the layers before and
    _enc of the encoder; total. Each is a sum over matched boxes (loss_ce: over all proposals) divided by the number of
    targets in the batch, at least 1.
    """
    config = config or ProposerLossConfig()
    logits_by_head, boxes_blq4 = output.logits_all_layers or {}, output.boxes_all_layers_cxcywh
    if boxes_blq4 is None or head not in logits_by_head:
        raise ValueError(f'no head "{head}" in this output, it has {sorted(logits_by_head)}')
    if len(targets) != len(boxes_blq4) or any(t.ndim != 2 or t.shape[1] != 4 for t in targets):
        shapes = [list(t.shape) for t in targets]
        raise ValueError(
            f"targets have shapes {shapes}, expected {len(boxes_blq4)} frames of [n, 4]"
        )
    goals = [box_convert(boxes.float(), "xyxy", "cxcywh") for boxes in targets]
    count = max(1, sum(map(len, goals)))
    logits_blq = logits_by_head[head]
    terms: dict[str, Tensor] = {}
    last = boxes_blq4.shape[1] - 1
    for layer in (last, *range(last)):
        found = _set_loss(logits_blq[:, layer], boxes_blq4[:, layer], goals, count, config)
        terms |= {
            name if layer == last else f"{name}_{layer}": value for name, value in found.items()
        }
    if output.encoder_objectness_logit is not None and output.encoder_box_logits is not None:
        dense = output.encoder_box_logits.sigmoid()
        found = _set_loss(output.encoder_objectness_logit, dense, goals, count, config)
        terms |= {f"{name}_enc": value for name, value in found.items()}
    weights = {"ce": config.objectness_weight, "bbox": config.l1_weight, "giou": config.giou_weight}
    total = torch.stack(
        [weights[name.split("_")[1]] * value for name, value in terms.items()]
    ).sum()
    return {"total": total, **terms}


def match(
    logits_bq: Tensor, boxes_bq4: Tensor, goals: Sequence[Tensor], config: ProposerLossConfig
) -> list[Tensor]:
    """Hungarian matching -> per frame [2, m]: proposals and their targets, m the smaller of both numbers.

    boxes_bq4 and goals ([n, 4] per frame): cxcywh. A cost that is not a number is the highest.
    """
    costs = []
    with torch.no_grad():
        for logits, boxes, goal in zip(logits_bq, boxes_bq4, goals, strict=True):
            object_cost = _focal(logits, 1.0, config) - _focal(logits, 0.0, config)
            giou = generalized_box_iou(
                box_convert(boxes, "cxcywh", "xyxy"), box_convert(goal, "cxcywh", "xyxy")
            )
            cost = config.cost_l1 * torch.cdist(boxes, goal, p=1) - config.cost_giou * giou
            costs.append(
                (cost + config.cost_objectness * object_cost[:, None]).nan_to_num(1e9, 1e9, -1e9)
            )
        at_once = torch.cat(
            [cost.flatten() for cost in costs]
        ).cpu()  # one wait for the device, not one per frame
    solved = []
    for cost, values in zip(costs, at_once.split([cost.numel() for cost in costs]), strict=True):
        pair = linear_sum_assignment(values.view(cost.shape).numpy())
        solved.append(torch.from_numpy(np.stack(pair)).to(cost.device))
    return solved


def _focal(logits: Tensor, label: float, config: ProposerLossConfig) -> Tensor:
    targets = torch.full_like(logits, label)
    return sigmoid_focal_loss(logits, targets, alpha=config.alpha, gamma=config.gamma)


def _set_loss(
    logits_bq: Tensor,
    boxes_bq4: Tensor,
    goals: Sequence[Tensor],
    count: int,
    config: ProposerLossConfig,
) -> dict[str, Tensor]:
    logits_bq, boxes_bq4 = logits_bq.float(), boxes_bq4.float()
    pairs = match(logits_bq, boxes_bq4, goals, config)
    labels = torch.zeros_like(logits_bq)
    for row, (proposals, _) in zip(labels, pairs, strict=True):
        row[proposals] = 1
    found = torch.cat([boxes[pair[0]] for boxes, pair in zip(boxes_bq4, pairs, strict=True)])
    wanted = torch.cat([goal[pair[1]] for goal, pair in zip(goals, pairs, strict=True)])
    if config.objectness == "focal":
        ce = sigmoid_focal_loss(
            logits_bq, labels, alpha=config.alpha, gamma=config.gamma, reduction="sum"
        )
    else:
        ce = F.binary_cross_entropy_with_logits(logits_bq, labels, reduction="sum")
    giou = generalized_box_iou_loss(
        box_convert(found, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
    )
    return {
        "loss_ce": ce / count,
        "loss_bbox": (found - wanted).abs().sum() / count,
        "loss_giou": giou.sum() / count,
    }


# --- masks (Eq. 11) ------------------------------------------------------------------------------------------------


def mask_losses(
    logits: Tensor, targets: Tensor, num_masks: int | None = None
) -> tuple[Tensor, Tensor]:
    """(BCE, Dice) of masks, each a mean over masks (model spec, section 3.3).

    logits, targets: [..., H, W], leading axes are masks. Targets are 0, 1, or IGNORE: such pixels add nothing, though
    the mean over a mask's pixels still divides by H * W. num_masks: what the sums over masks are divided by; by
    default the masks with any pixel that counts. The release counts its padding too.
    """
    if logits.shape != targets.shape or logits.ndim < 2:
        raise ValueError(
            f"logits {list(logits.shape)} and targets {list(targets.shape)} must be the same [..., H, W]"
        )
    counts = (targets != IGNORE).reshape(-1, targets.shape[-2] * targets.shape[-1])
    goal = targets.float().reshape(counts.shape).masked_fill(~counts, 0)
    logits = logits.float().reshape(counts.shape)
    if num_masks is None:
        num_masks = max(1, int(counts.any(1).sum()))
    bce = F.binary_cross_entropy_with_logits(
        logits, goal, weight=counts.float(), reduction="none"
    ).mean(1)
    share = logits.sigmoid() * counts
    scale, eps = 1000, 1e-6
    overlap = 2 * (share / scale * goal).sum(1)
    both = (share / scale).sum(1) + (goal / scale).sum(1)
    return bce.sum() / num_masks, (1 - (overlap + eps) / (both + eps)).sum() / num_masks


# --- filter head (Eq. 13) ------------------------------------------------------------------------------------------


class FilterLossConfig(Config):
    """positive, negative: a proposal is one above, and below, this IoU with the target; between, it does not count.
    *_weight: of the terms. The numbers of Eq. 13 are lost in our text; the defaults are reported second-hand: 0.5 and
    0.2, lambda_cls = 1, and lambda_box = 2 for L1 + GIoU. `detector` has the earlier ones, `release` the released."""

    positive: float = Field(default=0.5, gt=0, lt=1)
    negative: float = Field(default=0.2, gt=0, lt=1)
    score_weight: float = Field(default=1.0, ge=0)
    l1_weight: float = Field(default=2.0, ge=0)
    giou_weight: float = Field(default=2.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "FilterLossConfig":
        if self.negative > self.positive:
            raise ValueError(f"negative {self.negative} must not be above positive {self.positive}")
        return self

    @classmethod
    def detector(cls) -> "FilterLossConfig":
        """This project's defaults before any were reported: the weights of the DETR family, 0.5 and 0.3."""
        return cls(negative=0.3, l1_weight=5.0, giou_weight=2.0)

    @classmethod
    def release(cls, *, boxes: bool = False) -> "FilterLossConfig":
        """One threshold, nothing ignored. boxes: its optional term, off by default: 0.01 * (L1 + 1 - GIoU), whose L1
        is a mean over four numbers, ours their sum."""
        weight = 0.01 if boxes else 0.0
        return cls(positive=0.3, negative=0.3, l1_weight=weight / 4, giou_weight=weight)


def proposal_labels(
    boxes_p4: Tensor, targets_s4: Tensor, config: FilterLossConfig | None = None
) -> Tensor:
    """Proposals [P, 4] and each token's target [S, 4], xyxy -> [S, P] float32: 1 positive, 0 negative, or IGNORE.

    Positive: IoU > config.positive; negative: IoU < config.negative; the bounds themselves do not count. Where both
    are one number (the release) every proposal counts, and one at the bound is positive, as released. A target of four
    NaN is an absent object: all proposals are negative.
    """
    config = config or FilterLossConfig()
    if (
        boxes_p4.ndim != 2
        or targets_s4.ndim != 2
        or boxes_p4.shape[1] != 4
        or targets_s4.shape[1] != 4
    ):
        shapes = f"{list(boxes_p4.shape)} and {list(targets_s4.shape)}"
        raise ValueError(f"boxes and targets have shapes {shapes}, expected [P, 4] and [S, 4]")
    iou_sp = box_iou(targets_s4.float(), boxes_p4.float()).nan_to_num(0)
    labels = torch.full_like(iou_sp, IGNORE)
    labels[iou_sp < config.negative] = 0
    labels[iou_sp > config.positive] = 1
    if config.negative == config.positive:
        labels[iou_sp == config.positive] = 1
    return labels


def filter_loss(
    logits_sp: Tensor,
    boxes_p4: Tensor,
    targets_s4: Tensor,
    refined_sp4: Tensor | None = None,
    valid_p: Tensor | None = None,
    config: FilterLossConfig | None = None,
) -> dict[str, Tensor]:
    """Eq. 13 for one frame: S [BOX] tokens over P proposals -> scalars loss_ce, loss_bbox, loss_giou, total.

    logits: the tokens' scores of the proposals. targets: as in `proposal_labels`. refined: the boxes that the head
    made of the proposals; None: no box terms. valid: bool [P]; other proposals are left out, whatever their logit.
    loss_ce is the mean over all counted pairs; box terms are means over a token's positives, then over tokens that
    have any. Where nothing counts a term is 0.
    """
    config = config or FilterLossConfig()
    labels = proposal_labels(boxes_p4, targets_s4, config)
    if logits_sp.shape != labels.shape:
        raise ValueError(
            f"logits have shape {list(logits_sp.shape)}, expected {list(labels.shape)}"
        )
    if refined_sp4 is not None and refined_sp4.shape != (*labels.shape, 4):
        raise ValueError(
            f"refined boxes have shape {list(refined_sp4.shape)}, expected {[*labels.shape, 4]}"
        )
    if valid_p is not None:
        labels = labels.masked_fill(~valid_p, IGNORE)
    counted = labels != IGNORE
    ce = F.binary_cross_entropy_with_logits(
        logits_sp.float()[counted], labels[counted], reduction="sum"
    )
    terms = {"loss_ce": ce / counted.sum().clamp(min=1)}
    if refined_sp4 is not None:
        positive = labels == 1
        tokens, _ = positive.nonzero(as_tuple=True)
        found, wanted = refined_sp4.float()[positive], targets_s4.float()[tokens]
        # A mean per token, then over tokens: every pair weighs 1 / (its token's positives * tokens with any).
        weight = 1 / (positive.sum(1)[tokens] * positive.any(1).sum())
        terms["loss_bbox"] = ((found - wanted).abs().sum(1) * weight).sum()
        terms["loss_giou"] = (generalized_box_iou_loss(found, wanted) * weight).sum()
    weights = {
        "loss_ce": config.score_weight,
        "loss_bbox": config.l1_weight,
        "loss_giou": config.giou_weight,
    }
    return {
        "total": torch.stack([weights[name] * value for name, value in terms.items()]).sum(),
        **terms,
    }


# --- recall (Table 12) ---------------------------------------------------------------------------------------------


def oracle_recall(
    proposals: Sequence[Tensor],
    targets: Sequence[Tensor],
    top: int = 300,
    thresholds: Sequence[float] = (0.5, 0.75),
) -> dict[float, float]:
    """Share of target boxes that any of a frame's `top` best proposals overlaps with at least the threshold's IoU.

    proposals: [P, 4] per frame, xyxy, best first; targets: [n, 4] per frame. The share is over all frames' targets.
    """
    best = [
        box_iou(goal, boxes[:top]).amax(1) if len(boxes) else goal.new_zeros(len(goal))
        for boxes, goal in zip(proposals, targets, strict=True)
    ]
    overlaps = torch.cat(best) if best else torch.zeros(0)
    if not len(overlaps):
        raise ValueError("no target box in any frame: recall is not defined")
    return {threshold: float((overlaps >= threshold).float().mean()) for threshold in thresholds}
