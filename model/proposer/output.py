"""What every proposer answers, and what becomes of it: the best boxes of each frame."""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torchvision import ops
from transformers.utils import ModelOutput

FUSION = {"coco": 0.3, "sa1b": 0.7}
"""Exponents of the two released heads in the fused objectness (model spec, section 2.1)."""


@dataclass
class ProposerOutput(ModelOutput):
    """B frames, Q proposals, L decoder layers, N tokens of the feature levels. Boxes are cxcywh in [0, 1].

    boxes_cxcywh [B, Q, 4], objectness [B, Q] in [0, 1] (fused), decoder_last_hidden [B, Q, width] (the proposals'
    embeddings), logit_<head> [B, Q]; boxes_all_layers_cxcywh [B, L, Q, 4] and logits_all_layers, head -> [B, L, Q], for
    the auxiliary losses; encoder_objectness_logit [B, N] and encoder_box_logits [B, N, 4] (+inf where a cell's anchor
    is invalid): a dense prediction per token. Of the deformable proposer only: encoder_last [B, N, width],
    two_stage_indices [B, Q] (tokens, best first), init_reference_cxcywh [B, Q, 4], decoder_hidden_all_layers
    [B, L, Q, width], refined_reference_all_layers [B, L, Q, 4] (the reference that layer l leaves to layer l + 1).
    Boxes, logits and objectness are float32 whatever the network's dtype. What a proposer has not is None.
    """

    boxes_cxcywh: Tensor | None = None
    objectness: Tensor | None = None
    decoder_last_hidden: Tensor | None = None
    logit_coco: Tensor | None = None
    logit_sa1b: Tensor | None = None
    logit_objectness: Tensor | None = None
    boxes_all_layers_cxcywh: Tensor | None = None
    logits_all_layers: dict[str, Tensor] | None = None
    encoder_objectness_logit: Tensor | None = None
    encoder_box_logits: Tensor | None = None
    encoder_last: Tensor | None = None
    two_stage_indices: Tensor | None = None
    init_reference_cxcywh: Tensor | None = None
    decoder_hidden_all_layers: Tensor | None = None
    refined_reference_all_layers: Tensor | None = None


def make_output(
    hidden_bqd: Tensor, boxes_blq4: Tensor, logits: dict[str, Tensor], **more: Tensor | None
) -> ProposerOutput:
    """The output of a proposer from its embeddings, boxes and logits [B, L, Q] of all layers, last layer last."""
    last = {head: values[:, -1] for head, values in logits.items()}
    return ProposerOutput(
        boxes_cxcywh=boxes_blq4[:, -1],
        objectness=fuse_objectness(last),
        decoder_last_hidden=hidden_bqd,
        boxes_all_layers_cxcywh=boxes_blq4,
        logits_all_layers=logits,
        **{f"logit_{head}": values for head, values in last.items()},
        **more,
    )


def fuse_objectness(logits: dict[str, Tensor]) -> Tensor:
    """coco^0.3 * sa1b^0.7 of the heads' probabilities, or the probability of the single head; any shape, float32."""
    if len(logits) == 1:
        return next(iter(logits.values())).float().sigmoid()
    return torch.stack(
        [logits[head].float().sigmoid() ** power for head, power in FUSION.items()]
    ).prod(0)


class Proposals(NamedTuple):
    """The kept proposals of one frame, best first: boxes xyxy in [0, 1] of the frame, objectness in [0, 1], the
    proposer's embeddings, and their places among the proposer's queries."""

    boxes_xyxy: Tensor  # [P, 4] float32
    objectness: Tensor  # [P] float32
    embeddings: Tensor  # [P, width]
    indices: Tensor  # [P] int64


def propose(
    output: ProposerOutput,
    keep: int = 100,
    nms: float | None = None,
    threshold: float = 0.0,
    clip: bool = True,
) -> list[Proposals]:
    """At most `keep` proposals of each frame, best first (model spec, section 2.4).

    As released: the best 100, no suppression, no threshold. Paper, section 3.3: objectness filter and non-maximum
    suppression (threshold 0.4 and nms 0.8 in the authors' demo), both before `keep`. nms: the IoU above which the
    worse of two boxes goes. The best proposal always stays, so that the filter head has something to choose from.
    clip: to the frame; a box may otherwise lie a little outside.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}, must be at least 1")
    for name, value in (("threshold", threshold), ("nms", nms)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, must be in [0, 1]")
    scores_bq, hidden_bqd = (
        cast(Tensor, output.objectness),
        cast(Tensor, output.decoder_last_hidden),
    )
    boxes_bq4 = ops.box_convert(cast(Tensor, output.boxes_cxcywh), "cxcywh", "xyxy")
    boxes_bq4 = boxes_bq4.clamp(0, 1) if clip else boxes_bq4
    kept = []
    for scores, boxes, hidden in zip(scores_bq, boxes_bq4, hidden_bqd, strict=True):
        order = scores.argsort(descending=True, stable=True)
        if threshold > 0:
            order = order[: max(1, int((scores >= threshold).sum()))]
        if nms is not None:
            order = order[ops.nms(boxes[order], scores[order], nms)]
        order = order[:keep]
        kept.append(Proposals(boxes[order], scores[order], hidden[order], order))
    return kept
