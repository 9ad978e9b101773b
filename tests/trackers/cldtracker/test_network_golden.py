"""The network against the official implementation's numbers, block by block, and every golden tracking row alone."""

import json
import sys
import zlib
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.trackers.cldtracker.made import close, ostrack
from trackers.cldtracker import CLDTrackerNet, crop_target
from trackers.cldtracker.crop import crop_batch, crop_geometry, normalise
from trackers.cldtracker.network import decode, fuse, hann_window
from trackers.cldtracker.state import step_state
from trackers.seeded import normal, seed_module

TOKENS, MAPS, SCORES = 1e-4, 2e-5, 1e-6
"""The golden vectors' own tolerances (README.md, section 2)."""
ELIMINATES = {3: 0, 6: 1, 9: 2}
"""Block -> number of its elimination in golden names."""
TOWERS = ["score", "size", "offset"]


class Case(NamedTuple):
    """A pair of pictures: the golden arrays by name, our tokens, and what our blocks said."""

    wanted: dict[str, np.ndarray]
    tokens: torch.Tensor
    probe: dict[str, list[torch.Tensor]]


@pytest.fixture(scope="module", autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def golden(shared):
    sys.path.insert(0, str(shared / "golden"))
    return shared / "golden" / "cldtracker"


@pytest.fixture(scope="module")
def net() -> CLDTrackerNet:
    """Full size, name-seeded."""
    with torch.device("meta"):
        net = CLDTrackerNet()
    return seed_module(net.to_empty(device="cpu"), extra=False).eval()


@pytest.fixture(scope="module")
def forward(golden):
    return np.load(golden / "forward.npz")


def case_inputs(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    from golden_inputs import normalised, texture

    if name == "noise":
        z = normal("forward/noise/z", (2, 3, 192, 192))
        x = normal("forward/noise/x", (2, 3, 384, 384))
    else:
        z = normalised(texture("forward/image/z", 192, 192, 12, "s0:"))[None]
        x = normalised(texture("forward/image/x", 384, 384, 20, "s0:"))[None]
    return torch.from_numpy(z), torch.from_numpy(x)


@pytest.fixture(scope="module", params=["noise", "image"])
def case(request, net, forward) -> Case:
    template, search = case_inputs(request.param)
    probe: dict[str, list[torch.Tensor]] = {}
    tokens = net.backbone_features(net.embed_template(template), search, probe)
    prefix = request.param + "/"
    wanted = {k.removeprefix(prefix): forward[k] for k in forward.files if k.startswith(prefix)}
    return Case(wanted, tokens, probe)


# --- the backbone, then the head ---


@pytest.mark.parametrize("block", range(12), ids=lambda block: f"block {block}")
def test_golden_blocks(block, case):
    if block in ELIMINATES:
        check_elimination(ELIMINATES[block], case)
    tokens = case.probe["tokens"][block]
    close(tokens[:, 65], case.wanted["block_token65"][:, block], TOKENS)
    close(tokens[:, 0, :64], case.wanted["block_token0_head64"][:, block], TOKENS)


def check_elimination(k: int, case: Case) -> None:
    """Compared on the search grid: candidates of equal score may come in another order."""
    wanted, probe = case.wanted, case.probe
    for b in range(len(case.tokens)):
        ours, theirs = np.full((2, 576), np.nan)
        ours[probe["candidates"][k][b]] = probe["score"][k][b]
        theirs[wanted[f"ce{k}_candidates"][b]] = wanted[f"ce{k}_score"][b]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=SCORES)
        kept = wanted[f"ce{k}_kept_sorted_by_score"][b]
        assert set(probe["kept"][k][b].tolist()) == set(kept.tolist())


def test_numbers_of_tokens(case):
    sizes = [tokens.shape[1] for tokens in case.probe["tokens"]]
    assert sizes == [720] * 3 + [548] * 3 + [427] * 3 + [343] * 3
    pairs = zip(case.probe["score"], case.probe["kept"], strict=True)
    assert [len(score[0]) - len(kept[0]) for score, kept in pairs] == [172, 121, 84]
    assert ((case.tokens[:, 144:] == 0).all(2).sum(1) == 377).all()


def test_golden_tokens(case):
    wanted, tokens = case.wanted, case.tokens
    close(tokens[:, ::16, :96], wanted["final_tokens_every16_head96"], TOKENS)
    close(tokens.norm(dim=2), wanted["final_token_l2"], TOKENS)
    close(tokens[:, :144].mean(1), wanted["final_channel_mean_template"], TOKENS)
    close(tokens[:, 144:].mean(1), wanted["final_channel_mean_search"], TOKENS)
    close(tokens[:, 144:].unflatten(1, (24, 24))[:, 12], wanted["final_search_row12"], TOKENS)


@pytest.fixture(params=["plain", "uniform"])
def maps(request, case, net) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """(ours, golden by name): the head without fusion, and with uniform text."""
    model = ostrack(net) if request.param == "plain" else net
    prefix = request.param + "/"
    wanted = {k.removeprefix(prefix): v for k, v in case.wanted.items() if k.startswith(prefix)}
    return model.head(case.tokens), wanted


@pytest.mark.parametrize("tower", TOWERS)
def test_golden_maps(tower, maps):
    ours, wanted = maps
    close(ours[tower], wanted[f"{tower}_map"], MAPS)


def check_boxes(maps: dict[str, torch.Tensor], wanted: dict[str, np.ndarray]) -> None:
    """Decoded from golden maps or from ours: with the window, and without."""
    weighted = (maps["score"] * hann_window()).flatten(1)
    assert weighted.argmax(1).tolist() == wanted["hann_argmax"].tolist()
    close(weighted.topk(2).values, wanted["hann_top2"], MAPS)
    boxes, score, peak = decode(maps, hann_window())
    close(boxes, wanted["box_hann"], MAPS)
    close(score, wanted["score_at_argmax"], MAPS)
    close(peak, wanted["hann_top2"].max(1), MAPS)
    close(decode(maps, torch.ones(24, 24))[0], wanted["box_nohann"], MAPS)


def test_golden_boxes_of_golden_maps(maps):
    """A fault here is the decoder's alone."""
    _, wanted = maps
    check_boxes({key: torch.from_numpy(wanted[f"{key}_map"]) for key in TOWERS}, wanted)


def test_golden_boxes(maps):
    check_boxes(*maps)


# --- the head alone, on a given feature ---


@pytest.fixture(scope="module")
def feature() -> torch.Tensor:
    return torch.from_numpy(normal("forward/head/feature", (2, 768, 24, 24)))


def test_golden_head_without_fusion(forward, net, feature):
    ours = net.box_head(feature)
    names = [*(f"{tower}_map" for tower in TOWERS), "hann_argmax", "hann_top2"]
    names += ["box_nohann", "box_hann", "score_at_argmax"]
    wanted = {name: forward[f"head_plain/{name}"] for name in names}
    for tower in TOWERS:
        close(ours[tower], wanted[f"{tower}_map"], MAPS)
    check_boxes(ours, wanted)


def test_golden_fusion_with_two_text_vectors(forward, net, feature):
    template, search = (
        torch.from_numpy(2 * normal(f"forward/head/text_{k}", (2, 768))).softmax(1)
        for k in ("template", "search")
    )
    ours = net.box_head(fuse(feature, (template, search)))
    for tower in TOWERS:
        close(ours[tower], forward[f"head_text/{tower}_map"], MAPS)
    boxes = decode(ours, torch.ones(24, 24))[0]
    close(boxes, forward["head_text/pred_boxes"][:, 0], MAPS)


# --- from a frame and a state to the next state ---


RUNS = [
    ("seqA", "uniform"),
    ("seqA", "text"),
    ("seqB", "uniform"),
    ("seqB", "text"),
    ("seqC", "uniform"),
]


def block_means(crops: torch.Tensor) -> torch.Tensor:
    """[B, 3, S, S] -> [B, 12, 12, 3]: the means of equal blocks."""
    return crops.double().unflatten(2, (12, -1)).unflatten(4, (12, -1)).mean((3, 5)).movedim(1, 3)


@pytest.mark.parametrize(("name", "variant"), RUNS)
def test_golden_tracking_every_row_alone(golden, net, name, variant):
    """Crop, network, decode, step from the state the reference held before each frame; all rows as one batch.

    Of the runs with text, which differ in the fusion only, every third row: a row costs a full-size forward pass.
    """
    from golden_inputs import moving_square

    info = json.loads((golden / "tracking.json").read_text())["sequences"][name]
    shape = (
        info[k] for k in ("frames", "height", "width", "obj_h", "obj_w", "x0", "y0", "dx", "dy")
    )
    frames = moving_square(f"track/{name}", *shape, salt="s0:")
    want = dict(np.load(golden / f"track_{name}_{variant}.npz"))
    assert [zlib.crc32(f.tobytes()) for f in frames] == want["frame_crc32"].tolist()
    crop, factor = crop_target(frames[0], info["init_box_xywh"], 2.0, 192)
    assert factor == float(want["template_resize_factor"])
    template_crop = torch.from_numpy(crop).permute(2, 0, 1)[None]
    close(block_means(template_crop)[0], want["template_crop_block_mean"], 1e-3)
    assert zlib.crc32(crop.tobytes()) == int(want["template_crop_crc32"])
    template = net.embed_template(normalise(template_crop, torch.float32))

    rows = np.arange(len(want["state_in"]))[:: 3 if variant == "text" else 1]
    want = {k: v[rows] for k, v in want.items() if v.ndim and len(v) > rows[-1]}
    state = torch.from_numpy(want["state_in"])
    n, (height, width) = len(state), frames.shape[1:3]
    heights, widths = torch.full((n,), height), torch.full((n,), width)
    geometry = crop_geometry(state, 4.0)
    assert torch.stack(geometry, 1).tolist() == want["crop_x1_y1_side"].tolist()
    assert (384 / geometry[2].numpy()).tolist() == want["resize_factor"].tolist()
    base = torch.from_numpy(rows + 1) * frames[0].size  # row 0 belongs to frame 1
    crops = crop_batch(torch.from_numpy(frames).flatten(), base, heights, widths, *geometry, 384)
    close(block_means(crops), want["crop_block_mean"], 1e-3)
    found = [zlib.crc32(c.permute(1, 2, 0).numpy().tobytes()) for c in crops]
    assert found == want["crop_crc32"].tolist()

    probe: dict[str, list[torch.Tensor]] = {}
    tokens = net.backbone_features(
        template.expand(n, -1, -1), normalise(crops, torch.float32), probe
    )
    assert probe["kept"][-1].sort(1).values.tolist() == want["kept_sorted"].tolist()
    text = None
    if variant == "text":
        text = torch.from_numpy(want["template_text"]), torch.from_numpy(want["search_text"])
    maps = net.head(tokens, text)
    for tower in TOWERS:
        close(maps[tower], want[f"{tower}_map"], 5e-5)
    boxes, score, peak = decode(maps, hann_window())
    assert (maps["score"] * hann_window()).flatten(1).argmax(1).tolist() == want["argmax"].tolist()
    close(boxes, want["pred_cxcywh"], MAPS)
    close(score, want["score"], 5e-5)
    close(peak, want["hann_top2"].max(1), 5e-5)
    close(step_state(state, boxes, geometry[2], heights, widths), want["box_xywh"], 2e-3)
