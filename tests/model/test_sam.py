"""SAM2 with vector prompts: against the official package's numbers (README_hosts.md, section 4), and against the
package's own video predictor."""

import importlib
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from model.sam import Features, Prompt, build_sam, prepare, to_frame
from trackers import sam2 as network
from trackers.seeded import normal, seed_module

VERSIONS = {"v21": "tiny", "v20": "2.0-tiny"}
BOXES = torch.tensor([[48, 64, 128, 160], [150, 20, 230, 90]]) / 256
FPN, LOGITS, VIDEO, VIDEO_F32, SCORES, PIXELS = 2e-4, 5e-4, 2e-3, 5e-4, 1e-4, 1e-3
"""The golden vectors' own tolerances (README_hosts.md, section 4)."""

_models: dict = {}


def model(version, *, postprocess=False, image_size=None):
    """Seeded models, each built once."""
    key = version, postprocess, image_size
    if key not in _models:
        built = build_sam(VERSIONS[version], postprocess=postprocess, image_size=image_size)
        _models[key] = seed_module(built, "s0:")
    return _models[key]


def close(found, expected, tolerance):
    error = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64)).max()
    assert error <= tolerance, f"largest error {error:.2e}, allowed {tolerance:.0e}"


# --- the reference's numbers ---------------------------------------------------------------------------------------


class Golden:
    def __init__(self, shared):
        self.numbers = np.load(shared / "golden/sam2/sam2.npz")
        self.spec = json.loads((shared / "golden/sam2/sam2.json").read_text())["versions"]
        sys.path.insert(0, str(shared / "golden"))
        try:
            inputs = importlib.import_module("golden_inputs")
        finally:
            sys.path.pop(0)
        clip = inputs.moving_square(
            "sam2/video256", 4, 256, 256, 96, 80, 48, 64, 20, 12, salt="s0:"
        )
        pictures = torch.from_numpy(np.stack([inputs.normalised(frame) for frame in clip]))
        with torch.no_grad():  # the switches of post-processing do not reach the image encoder
            self.maps = {version: model(version).features(pictures) for version in VERSIONS}


@pytest.fixture(scope="module")
def golden(shared):
    return Golden(shared)


def extra(count=1):
    return torch.from_numpy(normal("sam2/extra", (1, 1, 256), "s0:")).expand(count, -1, -1)


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_features(version, golden):
    maps = golden.maps[version]
    for i, step in enumerate((4, 2, 1)):
        close(maps.maps[i][0, ::4, ::step, ::step], golden.numbers[f"{version}/fpn{i}"], FPN)
    close(
        model(version).without_memory(maps)[0, ::4].detach(),
        golden.numbers[f"{version}/image_embedding_every4"],
        FPN,
    )
    assert [tuple(m.shape[1:]) for m in maps.fpn] == [(256, 64, 64), (256, 32, 32), (256, 16, 16)]


PROMPTS = {
    "box": Prompt(None, BOXES[:1]),
    "box_pad": Prompt(None, BOXES[:1], 1),
    "box_extra": Prompt(extra(), BOXES[:1]),
    "box_pad_extra": Prompt(extra(), BOXES[:1], 1),
    "extra_only": Prompt(extra()),
    "pad_pad_extra": Prompt(extra(), None, 2),
}


@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_golden_prompts(version, golden):
    sparse = model(version).sparse
    close(sparse(PROMPTS["box"]), golden.numbers[f"{version}/sparse_box_corners"], 1e-5)
    close(
        sparse(PROMPTS["box_pad"]), golden.numbers[f"{version}/sparse_box_as_points_with_pad"], 1e-5
    )
    close(
        sparse(PROMPTS["pad_pad_extra"])[:, :2], golden.numbers[f"{version}/sparse_no_prompt"], 1e-5
    )


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_golden_masks_of_a_frame(version, name, multi, golden):
    case = f"{version}/image/{name}/{'multi' if multi else 'single'}"
    found = model(version).decode(golden.maps[version].rows([0]), PROMPTS[name], multimask=multi)
    ious, logits = golden.numbers[f"{case}/iou"], golden.numbers[f"{case}/low_res_logits"]
    close(found.ious_nm, ious, SCORES)
    close(found.iou_n, ious.max(1), SCORES)
    close(found.object_score_n, golden.numbers[f"{case}/object_score"][:, 0], SCORES)
    best = ious[0].argmax()
    close(found.logits_n1hw[0, 0, :: 2 if multi else 1, :: 2 if multi else 1], logits[best], LOGITS)


CASES = [
    "box",
    "box_extra",
    "two_objects",
    "box_f32memory",
    "box_extra_f32memory",
    "box_defaults",
    "box_extra_defaults",
    "box_defaults_f32memory",
    "box_extra_defaults_f32memory",
    "absent_f32memory",
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", VERSIONS)
@torch.no_grad()
def test_golden_clips(version, case, golden, monkeypatch):
    net = model(version, postprocess="defaults" in case)
    exact = case.endswith("f32memory")
    monkeypatch.setattr(net, "memory_dtype", None if exact else torch.bfloat16)
    if case.startswith("absent"):
        monkeypatch.setattr(
            net.sam_mask_decoder.pred_obj_score_head.layers[2].bias, "data", torch.tensor([-8.0])
        )
    memories = watch_memories(net, monkeypatch)
    spec = golden.spec[f"{version[1]}.{version[2]}"]["video_cases"][case]
    n, maps = len(spec["boxes"]), golden.maps[version]
    prompt = Prompt(extra(n) if "extra" in case else None, BOXES[:n], 1)
    steps = list(
        net.propagate(lambda t: maps.rows([t]), 4, {0: (list(range(n)), prompt)}, multimask=False)
    )

    assert [(t, objects) for t, objects, _ in steps] == [(t, list(range(n))) for t in range(4)]
    low = torch.stack([step.logits_n1hw[:, 0] for *_, step in steps])
    large = interpolate(low, (256, 256), mode="bilinear", align_corners=False).numpy()
    name, tolerance = f"{version}/video/{case}", VIDEO_F32 if exact else VIDEO
    numbers = golden.numbers
    close(low.transpose(0, 1)[..., ::2, ::2], numbers[f"{name}/low_res_logits"], tolerance)
    close(large[..., ::4, ::4], numbers[f"{name}/mask_logits_every4"], tolerance)
    masks = np.unpackbits(numbers[f"{name}/masks_packed"])[: large.size].reshape(large.shape)
    assert (masks != (large > 0)).mean() <= PIXELS
    close(
        torch.stack([step.object_score_n for *_, step in steps], 1),
        numbers[f"{name}/object_scores"],
        SCORES,
    )
    close(
        torch.stack([m["obj_ptr"] for m in memories], 1),
        numbers[f"{name}/object_pointers"],
        tolerance,
    )
    for t in (0, 1):
        expected = numbers[f"{name}/memory_frame{t}_every4"].astype(np.float64)
        # bfloat16 memories may be one rounding step apart: another last digit before it
        step = np.exp2(np.floor(np.log2(np.abs(expected) + 1e-9)) - 7) * (not exact)
        found = memories[t]["maskmem_features"][0, ::4].float().numpy()
        assert (np.abs(found - expected) <= tolerance + step).all()
    ious = torch.stack(
        [step.iou_n for *_, step in steps]
    )  # the reference runs object by object within a frame
    close(ious.flatten(), [max(offered) for offered in spec["predicted_ious"]], SCORES)


def watch_memories(net, monkeypatch):
    """What is remembered of every frame, as it happens."""
    seen: list[dict] = []
    encode = net._encode_memory_in_output

    def spy(*args):
        encode(*args)
        seen.append(args[-1])

    monkeypatch.setattr(net, "_encode_memory_in_output", spy)
    return seen


# --- the package's video predictor ---------------------------------------------------------------------------------

SIDE = 64


def clip(frames):
    rng = np.random.default_rng(3)
    pictures = np.repeat(rng.integers(0, 255, (1, 48, 96, 3), dtype=np.uint8), frames, 0)
    for t in range(frames):
        pictures[t, 8:40, t : t + 30] = (220, 30, 4 * t)
    return pictures


def box_at(t, shift=0.0):
    return torch.tensor([[(t + shift) / 96, 8 / 48, (t + shift + 30) / 96, 40 / 48]])


@pytest.fixture(scope="module")
def ours():
    """A model that rounds its memories as the package does, and 40 frames of features."""
    net = model("v21", postprocess=True, image_size=SIDE)
    net.memory_dtype = torch.bfloat16
    with torch.no_grad():
        frames = prepare(clip(40), SIDE)
        return net, frames, net.features(frames)


@pytest.fixture
def theirs(ours, monkeypatch):
    """Makes states of the package's predictor, of the first n frames of the clip."""
    import sam2.sam2_video_predictor as module

    target = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    predictor: Any = network.build("tiny", target, image_size=SIDE, fill_hole_area=0)
    predictor.load_state_dict(ours[0].state_dict())
    monkeypatch.setattr(module, "tqdm", lambda frames, **_: frames)

    def start(n):
        monkeypatch.setattr(module, "load_video_frames", lambda **_: (ours[1][:n], SIDE, SIDE))
        return predictor, predictor.init_state("a clip")

    return start


def follow(net, maps, count, prompts, *, reverse=False):
    steps = net.propagate(
        lambda t: maps.rows([t]), count, prompts, multimask=False, reverse=reverse
    )
    with torch.no_grad():
        return {
            (t, name): logits
            for t, names, step in steps
            for name, logits in zip(names, step.logits_n1hw, strict=True)
        }


def same(found, masks):
    """Our quarter-size logits against the package's full-size ones; memories may be one rounding step apart."""
    large = interpolate(found[None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
    close(large, masks, VIDEO)


def test_a_new_prompt_of_a_followed_object_equals_the_package(ours, theirs):
    """Prompted at 0, followed to 5, prompted anew at 6 and followed from there."""
    net, _, maps = ours
    predictor, state = theirs(12)
    predictor.add_new_points_or_box(state, 0, 1, box=box_at(0)[0] * SIDE)
    expected = {
        t: masks for t, _, masks in predictor.propagate_in_video(state, 0, max_frame_num_to_track=5)
    }
    predictor.add_new_points_or_box(state, 6, 1, box=box_at(6, 9)[0] * SIDE)
    expected |= {t: masks for t, _, masks in predictor.propagate_in_video(state, 6)}

    both = {0: ([1], Prompt(None, box_at(0), 1)), 6: ([1], Prompt(None, box_at(6, 9), 1))}
    found = follow(net, maps, 12, both)
    assert sorted(found) == [(t, 1) for t in range(12)]
    for t in range(12):
        same(found[t, 1], expected[t][0])
    once = follow(net, maps, 12, {0: both[0]})
    assert (once[6, 1] - found[6, 1]).abs().max() > 0.1
    assert (once[11, 1] - found[11, 1]).abs().max() > 1e-3


def test_backwards_equals_the_package(ours, theirs):
    net, _, maps = ours
    predictor, state = theirs(10)
    predictor.add_new_points_or_box(state, 7, 1, box=box_at(7)[0] * SIDE)
    expected = {t: masks for t, _, masks in predictor.propagate_in_video(state, 7, reverse=True)}
    found = follow(net, maps, 10, {7: ([1], Prompt(None, box_at(7), 1))}, reverse=True)
    assert list(found) == [(t, 1) for t in range(7, -1, -1)]
    for t in range(8):
        same(found[t, 1], expected[t][0])


def test_an_object_is_followed_alike_alone_and_beside_others(ours):
    """Three objects, one of them first seen later, one of the first two prompted anew: three batches from then on."""
    net, _, maps = ours
    boxes = torch.cat([box_at(0), box_at(20)])
    prompts = {
        0: (["a", "b"], Prompt(extra(2), boxes, 1)),
        3: (["c"], Prompt(extra(1), box_at(3), 1)),
        5: (["c", "b"], Prompt(extra(2), torch.cat([box_at(5), box_at(9)]), 1)),
    }
    together = follow(net, maps, 9, prompts)
    assert {name: min(t for t, n in together if n == name) for name in "abc"} == {
        "a": 0,
        "b": 0,
        "c": 3,
    }
    for name in "abc":
        own = {
            t: ([name], prompt.rows([names.index(name)]))
            for t, (names, prompt) in prompts.items()
            if name in names
        }
        alone = follow(net, maps, 9, own)
        for key in alone:
            close(together[key], alone[key], VIDEO)


def test_what_is_forgotten_is_not_missed(ours, monkeypatch):
    """Forty frames with a second prompt on the way: the same masks as without forgetting, and memory stays flat."""
    net, _, maps = ours
    prompts = {0: ([0], Prompt(extra(), None, 2)), 12: ([0], Prompt(extra(), box_at(12), 1))}
    kept, forget = [], net._forget

    def spy(entries, now):
        forget(entries, now)
        kept.append(len(entries))

    monkeypatch.setattr(net, "_forget", spy)
    found = follow(net, maps, 40, prompts)
    assert max(kept) == kept[-1] <= net.max_obj_ptrs_in_encoder
    monkeypatch.setattr(net, "_forget", lambda entries, now: None)
    for key, expected in follow(net, maps, 40, prompts).items():
        assert torch.equal(found[key], expected)


def test_every_frame_is_asked_for_once_and_in_order(ours):
    net, _, maps = ours
    asked = []

    def features(t):
        asked.append(t)
        return maps.rows([t])

    prompt = Prompt(extra(), None)
    with torch.no_grad():
        list(net.propagate(features, 5, {1: ([0], prompt), 3: ([1], prompt)}, multimask=True))
    assert asked == [1, 2, 3, 4]


def test_prompts_may_wait_for_what_is_seen_before(ours):
    """A prompt is looked up when its frame has come."""
    net, _, maps = ours
    prompts = {0: ([0], Prompt(extra(), None)), 2: ([0], Prompt(None, box_at(0)))}
    with torch.no_grad():
        for t, _, step in net.propagate(lambda t: maps.rows([t]), 4, prompts, multimask=False):
            if t == 1:
                prompts[2] = ([0], Prompt(None, box_at(20)))
            if t == 2:
                expected = net.decode(maps.rows([2]), Prompt(None, box_at(20)), multimask=False)
                close(step.logits_n1hw, expected.logits_n1hw, 1e-5)


def test_nothing_to_follow_is_refused(ours):
    net, _, maps = ours
    with pytest.raises(ValueError, match="no frame has a prompt"):
        next(net.propagate(lambda t: maps.rows([t]), 4, {}, multimask=False))
    with pytest.raises(ValueError, match=r"\[4\] are outside the video's 4 frames"):
        next(
            net.propagate(
                lambda t: maps.rows([t]), 4, {4: ([0], Prompt(extra(), None))}, multimask=False
            )
        )


# --- prompts -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_row_of_nan_is_no_box(ours):
    net, _, maps = ours
    boxes = torch.cat([box_at(0), torch.full((1, 4), torch.nan)])
    mixed = net.decode(maps.rows([0, 0]), Prompt(extra(2), boxes, 1), multimask=False)
    for row, alone in enumerate((Prompt(extra(), boxes[:1], 1), Prompt(extra(), None, 3))):
        close(
            mixed.logits_n1hw[row],
            net.decode(maps.rows([0]), alone, multimask=False).logits_n1hw[0],
            1e-4,
        )


def test_prompts_that_do_not_fit_are_refused(ours):
    net, _, maps = ours
    with pytest.raises(ValueError, match="empty prompt"):
        Prompt(None)
    with pytest.raises(ValueError, match="1 prompts need as many rows of features, not 2"):
        net.decode(maps.rows([0, 1]), Prompt(extra()), multimask=False)


def test_one_vector_can_be_trained_through_memory(ours):
    """Three frames: the loss of the last one reaches the vector on the first, and no weight."""
    net, _, maps = ours
    vector = extra().clone().requires_grad_()
    net.train()
    try:
        steps = list(
            net.propagate(lambda t: maps.rows([t]), 3, {0: ([0], Prompt(vector))}, multimask=True)
        )
    finally:
        net.eval()
    steps[-1][2].logits_n1hw.mean().backward()
    assert vector.grad is not None
    assert vector.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())


def test_two_vectors_make_one_prompt(ours):
    net = ours[0]
    vectors = torch.cat([extra(), extra() + 1], 1)
    sparse = net.sparse(Prompt(vectors, None, 2))
    assert torch.equal(sparse[:, 2:], vectors)
    assert torch.equal(sparse[0, :2], net.sam_prompt_encoder.not_a_point_embed.weight.expand(2, -1))


def test_frames_come_in_as_curation_prepares_them():
    """Which is how the package does it: tests/pipeline/segment/test_sam2_model.py."""
    from pipeline.segment.sam2_model import prepare as curation

    frames = np.random.default_rng(0).integers(0, 256, (2, 90, 161, 3), dtype=np.uint8)
    close(prepare(frames, 64)[1], curation(frames[1], 64, torch.device("cpu")), 1e-6)


def test_masks_go_out_at_the_size_of_the_frame():
    logits = torch.from_numpy(normal("logits", (2, 1, 16, 16)))
    masks = to_frame(logits.half(), 40, 70)
    assert masks.shape == (2, 40, 70)
    assert masks.dtype == torch.bool
    assert torch.equal(
        masks, interpolate(logits.half().float(), (40, 70), mode="bilinear")[:, 0] > 0
    )


def test_rows_of_features_repeat_a_frame(ours):
    maps: Features = ours[2]
    rows = maps.rows([3, 3, 1])
    assert len(rows) == 3
    for kind in ("fpn", "maps", "pos"):
        for mine, all_of in zip(getattr(rows, kind), getattr(maps, kind), strict=True):
            assert torch.equal(mine, all_of[[3, 3, 1]])
