"""The paper's filtration head: scores, refinement, fusion and selection, against the equations written out."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_convert, roi_align

from model.filtration import (
    FilterOutput,
    FiltrationConfig,
    FiltrationHead,
    apply_deltas,
    pool_regions,
    select,
)

DIM, CHANNELS, SIZES = 16, (8, 8, 12), ((24, 40), (12, 20), (6, 10))


@pytest.fixture
def inputs():
    """h, maps of a wide frame, boxes, objectness, embeddings."""
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, c, *size, generator=g) for c, size in zip(CHANNELS, SIZES, strict=True)]
    corners = torch.rand(30, 2, generator=g) * 0.6
    boxes = torch.cat([corners, corners + 0.05 + 0.3 * torch.rand(30, 2, generator=g)], 1)
    return (
        torch.randn(3, DIM, generator=g),
        maps,
        boxes,
        torch.rand(30, generator=g),
        torch.randn(30, DIM, generator=g),
    )


def head(**options) -> FiltrationHead:
    torch.manual_seed(1)
    return FiltrationConfig(**options).build(CHANNELS, DIM).eval()


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def trained(module: FiltrationHead) -> FiltrationHead:
    nn.init.normal_(module.refine[2].weight, std=0.5)
    return module


# --- size ---


def test_parameters_of_the_real_head():
    wanted = {
        ("head", "concatenated"): 987_141,
        ("mllm", "concatenated"): 462_085,
        ("head", "fused"): 921_861,
        ("mllm", "fused"): 396_805,
    }
    for (where, descriptor), count in wanted.items():
        with torch.device("meta"):
            module = FiltrationHead(FiltrationConfig(where=where, descriptor=descriptor))
        assert parameters(module) == count
    with torch.device("meta"):
        module = FiltrationHead()
    assert parameters(module.context) == 592_128
    assert parameters(module.score) == 768 * 256 + 256 + 256 + 1  # two layers: Eq. 8
    assert parameters(module.refine) == 768 * 256 + 256 + 256 * 4 + 4


def test_runs_on_shapes_alone():
    """Counting operations of the real size needs no memory."""
    with torch.device("meta"):
        maps = [torch.empty(1, 256, s, s) for s in (256, 128, 64)]
        out = FiltrationHead().eval()(
            torch.empty(2, 256), maps, torch.empty(300, 4), torch.empty(300)
        )
    assert out.logits.shape == (2, 300)
    assert out.boxes.shape == (2, 16, 4)


# --- Eq. 6-8 ---


@pytest.mark.parametrize("descriptor", ["concatenated", "fused"])
def test_scores_and_boxes_are_the_equations_written_out(inputs, descriptor):
    module = trained(head(descriptor=descriptor, top_k=30))
    h, maps, boxes, objectness, _ = inputs
    out = module(h, maps, boxes, objectness)
    regions = module.context
    for n in range(3):
        for i in (0, 13, 29):
            cells = [
                roi_align(
                    m,
                    [boxes[i : i + 1] * torch.tensor([m.shape[3], m.shape[2]] * 2)],
                    7,
                    aligned=True,
                )[0]
                for m in maps
            ]
            r = torch.cat(
                [phi(cell.flatten(1).T) for phi, cell in zip(regions.tokens, cells, strict=True)]
            )
            p = (
                sum(phi(cell.mean((1, 2))) for phi, cell in zip(regions.pooled, cells, strict=True))
                / 3
            )
            weights = (regions.key(r) @ regions.query(h[n]) / math.sqrt(DIM)).softmax(0)
            z = (weights[:, None] * regions.value(r)).sum(0)
            c = torch.cat([z, p, h[n]])
            if descriptor == "fused":
                c = module.fuse(c)
                s = module.score(c)[0]
            else:  # Eq. 8: W_2 ReLU(W_1 [Z; G; e_BOX])
                first, _, second = module.score
                s = second((first.weight @ c + first.bias).relu())[0]
            torch.testing.assert_close(out.logits[n, i], s, rtol=1e-4, atol=1e-5)
            delta = out.deltas[n][out.index[n] == i][0]  # Eq. 9: f_ref reads the same vector
            torch.testing.assert_close(delta, module.refine(c), rtol=1e-4, atol=1e-4)


def test_tokens_and_proposals_do_not_disturb_each_other(inputs):
    module = trained(head(top_k=30))
    h, maps, boxes, objectness, _ = inputs
    together = module(h, maps, boxes, objectness)
    alone = module(h[1:2], maps, boxes[5:9], objectness[5:9])
    torch.testing.assert_close(alone.logits[0], together.logits[1, 5:9], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        alone.boxes[0][alone.index[0].argsort()],
        together.boxes[1][together.index[1].argsort()][5:9],
        rtol=1e-4,
        atol=1e-5,
    )


def test_regions_follow_the_box_on_frames_that_are_not_square():
    """One bright cell: the box around it sees it on every level, boxes elsewhere see nothing."""
    maps = [torch.zeros(1, 1, h, w) for h, w in SIZES]
    for m in maps:
        h, w = m.shape[-2:]
        m[..., int(0.75 * h) : int(0.92 * h), int(0.1 * w) : int(0.2 * w)] = 1
    boxes = torch.tensor(
        [
            [0.05, 0.7, 0.25, 0.95],
            [0.7, 0.1, 0.9, 0.2],
            [0.6, 0.7, 0.9, 0.95],
            [0.05, 0.0, 0.25, 0.5],
        ]
    )
    for r in pool_regions(maps, boxes, 7):
        assert r.shape == (4, 49, 1)
        seen = r.mean((1, 2))
        assert seen[0] > 0.1
        assert (seen[1:] < 1e-3).all()


def test_levels_are_the_coarsest(inputs):
    h, maps, boxes, objectness, _ = inputs
    module = head(levels=2)
    before = module(h, maps, boxes, objectness).logits
    torch.testing.assert_close(
        module(h, [maps[0] + 9, *maps[1:]], boxes, objectness).logits, before
    )
    assert not torch.allclose(
        module(h, [maps[0], maps[1] + 9, maps[2]], boxes, objectness).logits, before
    )
    with pytest.raises(ValueError, match=r"levels=3, but only 2"):
        FiltrationHead(FiltrationConfig(levels=3), CHANNELS[:2], DIM)


def test_a_choice_by_language_alone_does_not_look_at_the_frame(inputs):
    h, maps, boxes, objectness, embeddings = inputs
    module = head(where="mllm")
    out = module(h, maps, boxes, objectness, embeddings)
    blind = module(h, [torch.zeros_like(m) for m in maps], boxes, objectness, embeddings)
    torch.testing.assert_close(out.logits, blind.logits)
    assert not torch.allclose(
        out.logits, module(h, maps, boxes, objectness, embeddings.flip(0)).logits
    )
    assert not torch.allclose(
        out.logits, module(h, maps, boxes.flip(0), objectness, embeddings).logits
    )
    with pytest.raises(ValueError, match="embeddings"):
        module(h, maps, boxes, objectness)


# --- Eq. 9 ---


def test_boxes_stay_until_refinement_is_trained(inputs):
    for module in (head(), head(refine=False)):
        out = module(*inputs)
        torch.testing.assert_close(out.boxes, inputs[2][out.index], rtol=0, atol=1e-6)
    assert out.deltas is None
    out = trained(head())(*inputs)
    assert not torch.allclose(out.boxes, inputs[2][out.index], atol=1e-3)
    torch.testing.assert_close(out.boxes, apply_deltas(inputs[2][out.index], out.deltas))


def test_deltas_mean_what_they_mean_to_detectors():
    torch.manual_seed(0)
    boxes = torch.cat([0.4 * torch.rand(50, 2), 0.5 + 0.3 * torch.rand(50, 2)], 1)
    deltas = torch.randn(50, 4)
    wanted = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas, boxes).clamp(0, 1)
    torch.testing.assert_close(apply_deltas(boxes, deltas), wanted, rtol=1e-5, atol=1e-5)
    tiny = torch.tensor([[0.499, 0.499, 0.501, 0.501]])
    grown = box_convert(apply_deltas(tiny, torch.tensor([[0.0, 0, 50, 50]])), "xyxy", "cxcywh")
    torch.testing.assert_close(
        grown, torch.tensor([[0.5, 0.5, 0.125, 0.125]]), rtol=1e-4, atol=1e-4
    )


def test_the_best_are_offered_and_in_training_all(inputs):
    out = head()(*inputs)
    assert out.index.shape == (3, 16)
    torch.testing.assert_close(out.logits.gather(1, out.index), out.logits.topk(16).values)
    assert head().train()(*inputs).boxes.shape == (3, 30, 4)
    assert head(top_k=99)(*inputs).index.shape == (3, 30)


# --- Eq. 10 ---


def test_confidence_of_both_rules(inputs):
    s, o = head()(*inputs).logits, inputs[3]
    torch.testing.assert_close(head()(*inputs).confidence, s.sigmoid().sqrt() * o.sqrt())
    torch.testing.assert_close(head(weight=0.8)(*inputs).confidence, s.sigmoid() ** 0.8 * o**0.2)
    torch.testing.assert_close(head(weight=1)(*inputs).confidence, s.sigmoid())
    summed = head(fusion="logit_sum")(*inputs)
    torch.testing.assert_close(summed.confidence, (s + o.log()).sigmoid())
    torch.testing.assert_close(summed.logits, s + o.log())


def output(boxes, confidence) -> FilterOutput:
    confidence = torch.tensor([confidence])
    index = confidence.argsort(1, descending=True)
    return FilterOutput(confidence.logit(), confidence, index, torch.tensor(boxes)[index])


def test_two_players_are_two_boxes_and_twins_one():
    boxes = [
        [0.1, 0.1, 0.3, 0.5],
        [0.6, 0.1, 0.8, 0.5],
        [0.1, 0.1, 0.3, 0.49],
        [0.4, 0.6, 0.5, 0.7],
    ]
    (one,) = select(output(boxes, [0.7, 0.9, 0.8, 0.2]), 0.5, 0.8)
    assert one.index_m.tolist() == [1, 2]
    torch.testing.assert_close(one.boxes_m4, torch.tensor(boxes)[[1, 2]])
    torch.testing.assert_close(one.confidence_m, torch.tensor([0.9, 0.8]))
    assert not one.fallback
    assert select(output(boxes, [0.7, 0.9, 0.8, 0.2]), 0.5)[0].index_m.tolist() == [1, 2, 0]


def test_threshold_and_nms_are_the_config_s():
    given = output(
        [[0.1, 0.1, 0.3, 0.5], [0.1, 0.1, 0.3, 0.4], [0.6, 0.6, 0.8, 0.8]], [0.9, 0.8, 0.4]
    )
    for options, wanted in (
        ({}, [0, 1]),
        ({"nms": 0.5}, [0]),
        ({"threshold": 0.3}, [0, 1, 2]),
        ({"threshold": 0.3, "nms": 0.5}, [0, 2]),
    ):
        assert head(**options).select(given)[0].index_m.tolist() == wanted


def test_there_is_always_one_box_and_it_says_when_it_is_a_guess():
    (one,) = select(output([[0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9]], [0.2, 0.3]), 0.5, 0.8)
    assert one.fallback
    assert one.index_m.tolist() == [1]


def test_without_proposals_or_tokens_nothing_is_selected(inputs):
    h, maps, boxes, objectness, embeddings = inputs
    for where in ("head", "mllm"):
        module = head(where=where)
        chosen = module.select(module(h, maps, boxes[:0], objectness[:0], embeddings[:0]))
        assert [len(one.boxes_m4) for one in chosen] == [0, 0, 0]
        assert not any(one.fallback for one in chosen)
        assert module.select(module(h[:0], maps, boxes, objectness, embeddings)) == []


# --- training ---


@pytest.mark.parametrize("fusion", ["product", "logit_sum"])
@pytest.mark.parametrize("where", ["head", "mllm"])
@pytest.mark.parametrize("descriptor", ["concatenated", "fused"])
def test_gradients_reach_every_weight_and_the_adapter(inputs, fusion, where, descriptor):
    h, *rest = inputs
    h = h.clone().requires_grad_()
    module = trained(head(fusion=fusion, where=where, descriptor=descriptor)).train()
    out = module(h, *rest)
    (out.logits.square().mean() + out.boxes.square().mean() + out.confidence.mean()).backward()
    exempt = {"context.key.bias"}  # moves all logits of a softmax alike
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert name in exempt or p.grad.abs().sum() > 0, name
    assert h.grad.abs().sum() > 0


def test_hopeless_proposals_do_not_poison_training(inputs):
    h, maps, boxes, _, _ = inputs
    module = head().train()
    nn.init.constant_(module.score[-1].bias, -200.0)
    out = module(h, maps, boxes, torch.zeros(30))
    (out.confidence.mean() + out.logits.mean()).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("where", ["head", "mllm"])
def test_half_precision_keeps_boxes_and_confidence_whole(inputs, where):
    module = head(where=where)
    h, maps, boxes, objectness, embeddings = inputs
    full = module(h, maps, boxes, objectness, embeddings)
    half = [h.bfloat16(), [m.bfloat16() for m in maps], boxes, objectness, embeddings.bfloat16()]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(*half)
    pure = copy.deepcopy(module).bfloat16()(*half)
    for out in (mixed, pure):
        assert {out.logits.dtype, out.confidence.dtype, out.boxes.dtype} == {torch.float32}
        torch.testing.assert_close(out.confidence, full.confidence, rtol=0.05, atol=0.02)
        torch.testing.assert_close(out.boxes, boxes[out.index], rtol=0, atol=1e-6)


def test_wrong_inputs_are_named(inputs):
    h, maps, boxes, objectness, embeddings = inputs
    module = head()
    for wrong, what in (
        ((h[:, :5], maps, boxes, objectness), r"h_nd must be \[3, 16\]"),
        ((h, maps[:2], boxes, objectness), r"maps must be"),
        ((h, maps[::-1], boxes, objectness), r"maps must be"),
        ((h, [m.expand(2, -1, -1, -1) for m in maps], boxes, objectness), r"one frame"),
        ((h, maps, boxes[:, :3], objectness), r"boxes_p4 must be \[30, 4\]"),
        ((h, maps, boxes, objectness[:4]), r"objectness_p must be \[30\]"),
    ):
        with pytest.raises(ValueError, match=what):
            module(*wrong)
    with pytest.raises(ValueError, match=r"embeddings_pd must be \[30, 16\]"):
        head(where="mllm")(h, maps, boxes, objectness, embeddings[:4])
    with pytest.raises(ValidationError, match="fusion"):
        FiltrationConfig(fusion="sum")
