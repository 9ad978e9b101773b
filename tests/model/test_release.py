"""The released selector, ROI helper and box-prior filter: numbers of the reference implementation."""

import json
import sys

import numpy as np
import pytest
import torch

from model.filtration import FilterOutput
from model.release import ReleaseFilter, ReleaseFilterConfig, box_prior_filter, box_prior_scores
from trackers.seeded import seeded

LOGITS = {"rtol": 0, "atol": 1e-4}
CASES = [
    "default_infer",
    "default_masked",
    "threshold_0.8",
    "threshold_0.9_masked",
    "threshold_too_high",
    "no_roi",
    "gamma_clamped_high",
    "gamma_clamped_low",
    "low_threshold_cap4",
]


@pytest.fixture(scope="module")
def golden(shared):
    sys.path.insert(0, str(shared / "golden"))
    folder = shared / "golden" / "proposer"
    with np.load(folder / "filter.npz") as arrays:
        expected = {k: torch.from_numpy(arrays[k]) for k in arrays.files}
    return json.loads((folder / "filter.json").read_text()), expected


@pytest.fixture(scope="module")
def inputs(golden):
    """seg vectors, maps, boxes, objectness, embeddings, and which proposals are valid."""
    from golden_inputs import gaussian

    names, expected = golden
    given = {
        k: torch.from_numpy(gaussian(*spec, names["salt"])) for k, spec in names["inputs"].items()
    }
    maps = [4 * given[f"pyramid{i}"] for i in range(3)]
    return (
        given["seg"],
        maps,
        expected["boxes_xyxy"],
        expected["objectness"],
        given["proposal_features"],
        expected["valid"],
    )


@pytest.fixture(scope="module")
def released(golden):
    module = ReleaseFilter().eval()
    salt, shapes = (
        golden[0]["salt"],
        {name: tuple(p.shape) for name, p in module.state_dict().items()},
    )
    seeds = {n: torch.as_tensor(seeded(n, shape, salt, extra=False)) for n, shape in shapes.items()}
    module.load_state_dict(seeds)
    return module


def test_names_and_sizes_are_the_checkpoint_s(shared):
    names = json.loads((shared / "golden/proposer/filter_keys.json").read_text())
    module = ReleaseFilter()
    assert {k: list(v.shape) for k, v in module.state_dict().items()} == {
        n["name"]: n["shape"] for n in names
    }
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()
    }
    box_head = sum(p.numel() for p in module.proposal_selector.box_head.parameters())
    assert counts == {"proposal_selector": 197_376 + 132_356, "roi_helper": 510_465}
    assert box_head == 132_356
    assert module.roi_fusion_gamma.item() == pytest.approx(0.1)


@torch.no_grad()
def test_selector(golden, inputs, released):
    h, _, _, objectness, embeddings, valid = inputs
    expected, selector = golden[1], released.proposal_selector
    rows = torch.ones(100, dtype=torch.bool)
    for case, scores, part in (
        ("plain", None, rows),
        ("scores", objectness, rows),
        ("scores_mask", objectness, valid),
    ):
        out = selector(h, embeddings[part], None if scores is None else scores[part])
        wanted = [
            expected[f"selector/{case}/{name}"]
            for name in ("logits", "attention", "refined", "pred_boxes_xyxy")
        ]
        torch.testing.assert_close(out[0], wanted[0][:, part], **LOGITS)
        torch.testing.assert_close(out[1], wanted[1][:, part], **LOGITS)
        torch.testing.assert_close(out[2], wanted[2], **LOGITS)
        torch.testing.assert_close(out[3], wanted[3][:, part], **LOGITS)


@torch.no_grad()
def test_roi_helper(golden, inputs, released):
    h, maps, boxes, *_ = inputs
    torch.testing.assert_close(
        released.roi_helper(h, maps, boxes), golden[1]["roi/logits"], **LOGITS
    )


def test_pooled_regions(golden, inputs):
    from model.filtration import pool_regions

    _, maps, boxes, *_ = inputs
    for level, regions in enumerate(pool_regions(maps, boxes[:12], 7)):
        wanted = golden[1][f"roi/pooled7x7_level{level}_first12_head8"]
        torch.testing.assert_close(
            regions.transpose(1, 2)[:, :8].unflatten(2, (7, 7)), wanted, **LOGITS
        )


@pytest.fixture(scope="module")
def scored(inputs, released):
    """Outputs by (gamma, masked), made once; leaving proposals out is the release's masking."""
    h, maps, boxes, objectness, embeddings, valid = inputs
    made: dict[tuple[float, bool], FilterOutput] = {}

    def score(gamma: float, masked: bool) -> tuple[FilterOutput, torch.Tensor]:
        part = valid if masked else torch.ones_like(valid)
        if (gamma, masked) not in made:
            released.train()  # all proposals are offered; the cap is applied below, per case
            with torch.no_grad():
                released.roi_fusion_gamma.fill_(gamma)
                made[gamma, masked] = released(
                    h, maps, boxes[part], objectness[part], embeddings[part]
                )
            released.eval()
        return made[gamma, masked], part.nonzero()[:, 0]

    return score


@pytest.mark.parametrize("name", CASES)
def test_selected_proposals(name, golden, scored):
    case = golden[0]["selection"][name]
    out, numbers = scored(case["gamma"] if case["use_roi_helper"] else 0.0, case["uses_valid_mask"])
    k = case["max_boxes"]
    capped = FilterOutput(out.logits, out.confidence, out.index[:, :k], out.boxes[:, :k])
    module = ReleaseFilter(
        ReleaseFilterConfig(threshold=case["threshold"], top_k=k, prior_keep=None)
    )
    for one, wanted in zip(module.select(capped), case["selected_indices_per_token"], strict=True):
        found = numbers[one.index_m].tolist()
        if len(wanted) == k:  # the reference sorts only where the cap trims
            assert found == wanted
        else:
            assert sorted(found) == sorted(wanted)
        assert one.fallback == bool((one.confidence_m < case["threshold"]).any())


def test_every_golden_case_is_tested(golden):
    assert set(golden[0]["selection"]) == set(CASES)


@torch.no_grad()
def test_forward_offers_raw_proposals_up_to_the_cap(inputs, released):
    h, maps, boxes, objectness, embeddings, _ = inputs
    released.roi_fusion_gamma.fill_(0.1)
    out = released(h, maps, boxes, objectness, embeddings)
    assert out.index.shape == (4, 16)
    torch.testing.assert_close(out.boxes, boxes[out.index])
    torch.testing.assert_close(out.confidence, out.logits.sigmoid())
    assert out.deltas is None


# --- the box-prior filter ---


@pytest.fixture(scope="module")
def prior(golden):
    names, expected = golden
    bits = np.unpackbits(expected["prior/masks"].numpy()).reshape(
        12, *names["prior_filter"]["mask_hw"]
    )
    return expected["prior/boxes_xyxy"], torch.from_numpy(bits).bool()


def test_box_prior_scores(golden, prior):
    torch.testing.assert_close(
        box_prior_scores(*prior), golden[1]["prior/scores"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", ["eval", "chat", "keep_all_over", "nothing_passes"])
def test_box_prior_filter(name, golden, prior):
    case = golden[0]["prior_filter"]["cases"][name]
    kept = box_prior_filter(
        box_prior_scores(*prior), case["min_score"], case["max_keep"] or None
    ).tolist()
    assert (
        kept == case["kept_indices"] if case["max_keep"] else sorted(kept) == case["kept_indices"]
    )


def test_evaluation_keeps_one_box_and_chat_several():
    """Three boxes pass; the masks they prompt fit the second best, then the last, and not at all the first."""
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0]])
    confidence = torch.tensor([[0.9, 0.6, 0.5]])
    out = FilterOutput(confidence.logit(), confidence, torch.tensor([[0, 1, 2]]), boxes[None])
    masks = torch.zeros(3, 40, 40, dtype=torch.bool)
    masks[0, 36:, 36:] = True
    masks[1, 20:, 20:] = True
    masks[2, 22:, :18] = True
    asked = []

    def of(boxes_m4):
        asked.append(boxes_m4)
        return masks

    keep = {n: ReleaseFilter(ReleaseFilterConfig(prior_keep=n)).select(out, of)[0] for n in (1, 4)}
    assert keep[1].index_m.tolist() == [1]
    assert keep[4].index_m.tolist() == [1, 2]
    torch.testing.assert_close(keep[4].confidence_m, torch.tensor([0.6, 0.5]))
    torch.testing.assert_close(asked[0], boxes)
    assert ReleaseFilter(ReleaseFilterConfig(prior_keep=None)).select(out)[0].index_m.tolist() == [
        0,
        1,
        2,
    ]
    with pytest.raises(ValueError, match="prior_keep=None"):
        ReleaseFilter().select(out)
    with pytest.raises(ValueError, match="box prior"):
        box_prior_scores(boxes, masks[:2])


# --- training ---


def small() -> tuple[ReleaseFilter, list]:
    torch.manual_seed(0)
    module = ReleaseFilterConfig().build((4, 6, 8), 16)
    maps = [torch.randn(1, c, s, 2 * s) for c, s in ((4, 16), (6, 8), (8, 4))]
    corners = 0.5 * torch.rand(20, 2)
    return module, [
        torch.randn(2, 16),
        maps,
        torch.cat([corners, corners + 0.3], 1),
        torch.rand(20),
        torch.randn(20, 16),
    ]


def test_gradients_reach_what_the_released_losses_train():
    module, given = small()
    given[0].requires_grad_()
    out = module(*given)
    assert out.boxes.shape == (2, 20, 4)
    (out.logits.square().mean() + out.predicted_boxes.square().mean()).backward()
    none = {n for n, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert none == {
        "proposal_selector.fuse_proj.weight",
        "proposal_selector.fuse_proj.bias",  # the refined vector is not used
        "proposal_selector.box_head.0.weight",
        "proposal_selector.box_head.0.bias",  # behind the zero layer, at first
    }
    assert given[0].grad.abs().sum() > 0


def test_every_untrained_box_is_the_same_point():
    module, given = small()
    torch.testing.assert_close(module(*given).predicted_boxes, torch.full((2, 20, 4), 0.5))


def test_half_precision_and_absent_proposals():
    module, given = small()
    module.eval()
    full = module(*given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(*given)
    half = [x.bfloat16() if i in (0, 4) else x for i, x in enumerate(given)]
    for out in (mixed, module.bfloat16()(*half)):
        assert {out.logits.dtype, out.boxes.dtype, out.predicted_boxes.dtype} == {torch.float32}
        torch.testing.assert_close(out.confidence, full.confidence, rtol=0.1, atol=0.03)
    h, maps, boxes, objectness, embeddings = half
    none = module(h, maps, boxes[:0], objectness[:0], embeddings[:0])
    assert [len(one.boxes_m4) for one in module.select(none, lambda b: b)] == [0, 0]
    with pytest.raises(ValueError, match="embeddings"):
        module(h, maps, boxes, objectness)
