"""Losses against the released ones' numbers and transformers', and what a trainer relies on besides."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.ops import box_convert
from transformers.loss.loss_deformable_detr import (
    DeformableDetrHungarianMatcher,
    DeformableDetrImageLoss,
)

from model.losses import (
    FilterLossConfig,
    ProposerLossConfig,
    filter_loss,
    mask_losses,
    match,
    oracle_recall,
    proposal_labels,
    proposer_loss,
)
from model.proposer import DeformableProposer, ProposerConfig
from model.proposer.output import make_output
from trackers.seeded import seed_module

RELATIVE = 1e-4  # the golden vectors' tolerance for losses


@pytest.fixture(scope="module")
def golden(shared):
    sys.path.insert(0, str(shared / "golden"))
    return shared / "golden" / "proposer"


def random_boxes(n: int, seed: int) -> torch.Tensor:
    """[n, 4] cxcywh, all inside the frame."""
    corners = (
        torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(seed)).sort(1).values.flatten(1)
    )
    return box_convert(corners, "xyxy", "cxcywh")


# --- proposer -----------------------------------------------------------------------------------------------------


def test_golden_proposer_losses(golden):
    from golden_inputs import gaussian

    with torch.device("meta"):
        net = DeformableProposer()
    net = seed_module(net.to_empty(device="cpu"), "s0:", extra=False).eval()
    spec = json.loads((golden / "forward.json").read_text())["cases"]["map28"]
    arrays = np.load(golden / "forward.npz")
    feature = np.concatenate(
        [gaussian(name, (1, 256, 28, 28), "s0:") for name in spec["feature"]["names"]]
    )
    goals = [torch.from_numpy(arrays[f"map28/target_boxes_cxcywh_{row}"]) for row in (0, 1)]
    with torch.no_grad():
        output = net(torch.from_numpy(feature))
    for head in ("coco", "sa1b"):
        found = proposer_loss(
            output, [box_convert(boxes, "cxcywh", "xyxy") for boxes in goals], head
        )
        # The reference's cardinality error is the number of targets whatever is predicted, so it is left out.
        wanted = {
            k: v for k, v in spec["training_loss"][head].items() if not k.startswith("cardinality")
        }
        assert {name: value.item() for name, value in found.items()} == pytest.approx(
            wanted, rel=RELATIVE
        )


def outputs(logits_blq: torch.Tensor, boxes_blq4: torch.Tensor):
    hidden = torch.zeros(logits_blq.shape[0], logits_blq.shape[2], 8)
    return make_output(hidden, boxes_blq4, {"coco": logits_blq, "sa1b": logits_blq - 1})


def test_matching_and_losses_equal_those_of_transformers():
    boxes = torch.stack([random_boxes(12, 0), random_boxes(12, 1)])
    logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(2))
    goals = [random_boxes(5, 3), random_boxes(2, 4)]
    matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    labels = [{"class_labels": torch.zeros(len(g), dtype=torch.int64), "boxes": g} for g in goals]
    predicted = {"logits": logits[..., None], "pred_boxes": boxes}
    pairs = match(logits, boxes, goals, ProposerLossConfig())
    for pair, wanted in zip(pairs, matcher(predicted, labels), strict=True):
        assert torch.equal(pair, torch.stack(wanted))
    theirs = DeformableDetrImageLoss(
        matcher, num_classes=1, focal_alpha=0.25, losses=["labels", "boxes"]
    )
    wanted = theirs(predicted, labels)
    found = proposer_loss(
        outputs(logits[:, None], boxes[:, None]), [box_convert(g, "cxcywh", "xyxy") for g in goals]
    )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=RELATIVE, atol=0)
    total = 2 * wanted["loss_ce"] + 5 * wanted["loss_bbox"] + 2 * wanted["loss_giou"]
    torch.testing.assert_close(found["total"], total, rtol=RELATIVE, atol=0)


def test_frames_without_targets_teach_that_nothing_is_there():
    logits = torch.zeros(2, 1, 3, requires_grad=True)
    boxes = torch.full((2, 1, 3, 4), 0.5, requires_grad=True)
    found = proposer_loss(outputs(logits, boxes), [torch.zeros(0, 4)] * 2, "sa1b")
    assert found["loss_bbox"] == found["loss_giou"] == 0
    assert found["loss_ce"] > 0  # divided by one, not by no target
    found["total"].backward()
    assert (logits.grad > 0).all()
    assert not boxes.grad.any()


def test_more_targets_than_proposals():
    """The single-box proposer on a frame of three objects: the nearest is matched."""
    goals = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.4, 0.4, 0.8, 0.8], [0.9, 0.9, 1.0, 1.0]])
    boxes = box_convert(goals[1:2] + 0.01, "xyxy", "cxcywh")[None, None]
    found = proposer_loss(outputs(torch.zeros(1, 1, 1), boxes), [goals])
    assert found["loss_bbox"].item() == pytest.approx(0.02 / 3, rel=1e-3)


def test_equation_12_with_plain_cross_entropy():
    logits = torch.tensor([[[0.3, -2.0]]])
    boxes = torch.stack([random_boxes(2, 5)])[None]
    goal = box_convert(boxes[0, 0, :1], "cxcywh", "xyxy")
    found = proposer_loss(
        outputs(logits, boxes), [goal], config=ProposerLossConfig(objectness="bce")
    )
    assert found["loss_ce"].item() == pytest.approx(
        math.log1p(math.exp(-0.3)) + math.log1p(math.exp(-2)), rel=1e-5
    )
    assert found["loss_giou"].item() == pytest.approx(0, abs=1e-5)


def test_cells_without_a_valid_anchor_give_no_infinite_gradient():
    net = seed_module(DeformableProposer(ProposerConfig.tiny()), extra=False)
    output = net(torch.randn(1, 256, 6, 60, generator=torch.Generator().manual_seed(0)))
    assert output.encoder_box_logits.isinf().any()
    found = proposer_loss(output, [torch.tensor([[0.2, 0.2, 0.6, 0.7]])])
    found["total"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_targets_and_heads_that_do_not_fit_are_refused():
    output = outputs(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3, 4))
    with pytest.raises(ValueError, match=r"\[\[2, 5\]\], expected 2 frames of \[n, 4\]"):
        proposer_loss(output, [torch.zeros(2, 5)])
    with pytest.raises(ValueError, match=r"no head \"objectness\" .* \['coco', 'sa1b'\]"):
        proposer_loss(output, [torch.zeros(0, 4)] * 2, "objectness")


# --- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["no_ignore", "ignore"])
def test_golden_mask_losses(golden, variant):
    """The reference joins the axes after the first two, so that its 'masks' here are rows for Dice; for cross-entropy
    it divides by 320 of a mask's 12,800 pixels."""
    from golden_inputs import gaussian

    logits = torch.from_numpy(2 * gaussian("filter/mask_logits", (3, 8, 40, 40), "s0:"))
    targets = torch.from_numpy(gaussian("filter/mask_targets", (3, 8, 40, 40), "s0:") > 0.6).float()
    if variant == "ignore":
        targets[1, 3] = -1
        targets[2, :, :5] = -1
    wanted = json.loads((golden / "filter.json").read_text())["mask_losses"][variant]
    rows = [x.reshape(-1, 1, 40) for x in (logits, targets)]
    assert mask_losses(*rows, num_masks=3)[1].item() == pytest.approx(wanted["dice"], rel=RELATIVE)
    volumes = [x.reshape(3, 320, 40) for x in (logits, targets)]
    assert mask_losses(*volumes)[0].item() * 40 == pytest.approx(wanted["bce"], rel=RELATIVE)


def test_padding_masks_change_nothing_unless_counted():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, generator=g)
    targets = (torch.rand(2, 3, 5, 7, generator=g) > 0.5).float()
    padded = [
        torch.cat([logits, torch.randn(2, 3, 5, 7)]),
        torch.cat([targets, torch.full((2, 3, 5, 7), -1.0)]),
    ]
    padded[0].requires_grad_()
    alone, together = torch.stack(mask_losses(logits, targets)), torch.stack(mask_losses(*padded))
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(
        torch.stack(mask_losses(*padded, num_masks=12)), alone / 2
    )  # the release's mean
    together.sum().backward()
    assert padded[0].grad[:2].any()
    assert not padded[0].grad[2:].any()


def test_mask_losses_of_known_masks():
    target = torch.zeros(1, 4, 4)
    target[0, :2] = 1
    perfect = torch.stack(mask_losses((target * 2 - 1) * 50, target))
    torch.testing.assert_close(perfect, torch.zeros(2), rtol=0, atol=1e-4)
    bce, dice = mask_losses(torch.zeros(1, 4, 4), target)
    assert bce.item() == pytest.approx(math.log(2))
    assert dice.item() == pytest.approx(0.5, abs=1e-3)  # 2 * 4 / (8 + 8)
    assert torch.stack(mask_losses(torch.zeros(1, 4, 4), torch.full((1, 4, 4), -1))).tolist() == [
        0,
        0,
    ]
    with pytest.raises(ValueError, match=r"\[1, 4, 4\] and targets \[4, 4\]"):
        mask_losses(torch.zeros(1, 4, 4), torch.zeros(4, 4))


# --- filter head --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def selection(golden):
    """(boxes [100, 4], targets [4, 4] (the last absent), arrays, expected values per case)"""
    arrays = np.load(golden / "filter.npz")
    spec = json.loads((golden / "filter.json").read_text())
    targets = torch.tensor([box or [math.nan] * 4 for box in spec["target_boxes_xyxy"]])
    return torch.from_numpy(arrays["boxes_xyxy"]), targets, arrays, spec["selection"]


def test_golden_labels(selection):
    boxes, targets, arrays, _ = selection
    labels = proposal_labels(boxes, targets, FilterLossConfig.release(boxes=True))
    np.testing.assert_array_equal(labels, arrays["targets_iou0.3"])


def test_golden_filter_losses(selection):
    boxes, targets, arrays, cases = selection
    for case in cases.values():
        valid = torch.from_numpy(arrays["valid"]) if case["uses_valid_mask"] else None
        which = "scores_mask" if case["uses_valid_mask"] else "scores"
        logits = torch.from_numpy(arrays[f"selector/{which}/logits"])
        if case["use_roi_helper"]:
            logits = logits + min(max(case["gamma"], 0), 1) * torch.from_numpy(arrays["roi/logits"])
        refined = torch.from_numpy(arrays[f"selector/{which}/pred_boxes_xyxy"])
        found = filter_loss(
            logits, boxes, targets, refined, valid, FilterLossConfig.release(boxes=True)
        )
        box = (
            found["loss_bbox"] / 4 + found["loss_giou"]
        )  # the reference's L1 is a mean over four numbers
        assert box.item() == pytest.approx(case["box_l1_plus_giou"], rel=RELATIVE)
        if (
            case["proposal_bce"] is None
        ):  # not a number there: masked proposals have infinite logits
            assert found["loss_ce"].isfinite()
        else:
            assert found["loss_ce"].item() == pytest.approx(case["proposal_bce"], rel=RELATIVE)
        assert found["total"].item() == pytest.approx(
            found["loss_ce"].item() + 0.01 * box.item(), rel=1e-5
        )


def test_proposals_between_the_thresholds_and_masked_ones_do_not_count():
    boxes = torch.tensor([[0.0, 0, 1, 0.6], [0.0, 0, 1, 0.4], [0.0, 0, 1, 0.1], [0.0, 0, 1, 1]])
    targets = torch.tensor([[0.0, 0, 1, 1], [math.nan] * 4])
    assert proposal_labels(boxes, targets).tolist() == [[1, -1, 0, 1], [0, 0, 0, 0]]
    logits = torch.tensor(
        [[1.0, 9.0, -2.0, -math.inf], [0.5, 0.0, 0.0, -math.inf]], requires_grad=True
    )
    valid = torch.tensor([True, True, True, False])
    found = filter_loss(logits, boxes, targets, valid_p=valid)
    wanted = [math.log1p(math.exp(x)) for x in (-1.0, -2.0, 0.5, 0.0, 0.0)]
    assert found["loss_ce"].item() == pytest.approx(sum(wanted) / 5, rel=1e-5)
    found["total"].backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad != 0).tolist() == [[True, False, True, False], [True, True, True, False]]


def test_a_proposal_at_a_bound_does_not_count_but_in_the_release_it_is_a_positive():
    """Heights of 1/2, 1/4 and 3/4 are exact: the IoU is the bound itself."""
    targets = torch.tensor([[0.0, 0, 1, 1]])
    boxes = torch.tensor([[0.0, 0, 1, 0.75], [0.0, 0, 1, 0.5], [0.0, 0, 1, 0.25], [0.0, 0, 1, 0.1]])
    two = FilterLossConfig(positive=0.5, negative=0.25)
    assert proposal_labels(boxes, targets, two).tolist() == [[1, -1, -1, 0]]
    one = FilterLossConfig(positive=0.5, negative=0.5)
    assert proposal_labels(boxes, targets, one).tolist() == [[1, 1, 0, 0]]


def test_bounds_and_weights_of_eq_13_have_names():
    def numbers(config: FilterLossConfig) -> tuple[float, ...]:
        return tuple(config.model_dump().values())

    assert numbers(FilterLossConfig()) == (0.5, 0.2, 1, 2, 2)  # reported
    assert numbers(FilterLossConfig.detector()) == (0.5, 0.3, 1, 5, 2)
    assert numbers(FilterLossConfig.release()) == (0.3, 0.3, 1, 0, 0)


def test_box_terms_weigh_tokens_not_proposals():
    boxes = torch.tensor([[0.0, 0, 0.5, 1], [0.0, 0, 0.5, 0.9], [0.5, 0, 1, 1]])
    targets = torch.tensor([[0.0, 0, 0.5, 1], [0.5, 0, 1, 1]])
    refined = targets[:, None].repeat(1, 3, 1)
    refined[0, 0, 2] += (
        0.1  # one of the first token's two positives is 0.1 off, so is the second token's only one
    )
    refined[1, 2, 3] -= 0.1
    refined[1, 0] = math.nan  # not a positive of this token
    found = filter_loss(torch.zeros(2, 3), boxes, targets, refined)
    assert found["loss_bbox"].item() == pytest.approx((0.1 / 2 + 0.1) / 2, rel=1e-5)
    wanted = found["loss_ce"] + 2 * (found["loss_bbox"] + found["loss_giou"])
    torch.testing.assert_close(found["total"], wanted)


def test_nothing_to_learn_is_zero_with_a_gradient():
    logits = torch.zeros(1, 2, requires_grad=True)
    refined = torch.zeros(1, 2, 4, requires_grad=True)
    none_valid = torch.zeros(2, dtype=torch.bool)
    found = filter_loss(logits, torch.rand(2, 4), torch.rand(1, 4), refined, none_valid)
    assert found["total"] == 0
    found["total"].backward()
    assert not logits.grad.any()


def test_thresholds_and_shapes_are_checked():
    with pytest.raises(ValidationError, match=r"negative 0\.6 must not be above positive 0.5"):
        FilterLossConfig(negative=0.6)
    with pytest.raises(ValueError, match=r"\[2, 2\], expected \[1, 3\]"):
        filter_loss(torch.zeros(2, 2), torch.zeros(3, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"expected \[P, 4\] and \[S, 4\]"):
        proposal_labels(torch.zeros(3, 4), torch.zeros(4))


# --- recall -------------------------------------------------------------------------------------------------------


def test_oracle_recall_counts_targets_of_all_frames():
    targets = [
        torch.tensor([[0.0, 0, 1, 1], [0.0, 0, 0.2, 0.2]]),
        torch.tensor([[0.0, 0, 1, 1]]),
        torch.zeros(0, 4),
    ]
    proposals = [
        torch.tensor([[0.5, 0.5, 0.6, 0.6], [0.0, 0, 1, 0.6]]),
        torch.zeros(0, 4),
        torch.rand(3, 4),
    ]
    assert oracle_recall(proposals, targets) == pytest.approx({0.5: 1 / 3, 0.75: 0.0})
    assert oracle_recall(proposals, targets, top=1)[0.5] == 0
    exact = oracle_recall(targets, targets)
    assert exact == {0.5: 1.0, 0.75: 1.0}
    with pytest.raises(ValueError, match="no target box"):
        oracle_recall(proposals[:1], [torch.zeros(0, 4)])
