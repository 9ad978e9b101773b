"""The network against the official implementation's numbers, layer by layer, and every golden tracking row alone."""

import json
import sys
import zlib

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from trackers.cldtracker import CLDTrackerConfig, CLDTrackerNet, crop_target
from trackers.cldtracker.crop import crop_batch, crop_geometry, normalise
from trackers.cldtracker.network import decode, fuse, hann_window
from trackers.cldtracker.state import step_state
from trackers.seeded import normal, seed_module

TOKENS, MAPS, SCORES = 1e-4, 2e-5, 1e-6  # the golden vectors' tolerances
TINY = CLDTrackerConfig.tiny()


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


@pytest.fixture(scope="module")
def tiny() -> CLDTrackerNet:
    return seed_module(CLDTrackerNet(TINY), extra=False).eval()


def close(found: torch.Tensor, wanted: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=tolerance)


def case_inputs(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    from golden_inputs import normalised, texture

    if name == "noise":
        z, x = (
            normal(f"forward/noise/{k}", (2, 3, side, side)) for k, side in (("z", 192), ("x", 384))
        )
    else:
        z = normalised(texture("forward/image/z", 192, 192, 12, "s0:"))[None]
        x = normalised(texture("forward/image/x", 384, 384, 20, "s0:"))[None]
    return torch.from_numpy(z), torch.from_numpy(x)


@pytest.fixture(scope="module", params=["noise", "image"])
def case(request, net, forward):
    """(golden arrays of the case by name, tokens, probe)"""
    template, search = case_inputs(request.param)
    probe: dict[str, list[torch.Tensor]] = {}
    tokens = net.backbone_features(net.embed_template(template), search, probe)
    prefix = request.param + "/"
    return (
        {k.removeprefix(prefix): forward[k] for k in forward.files if k.startswith(prefix)},
        tokens,
        probe,
    )


def test_golden_tokens(case):
    wanted, tokens, probe = case
    close(torch.stack([t[:, 65] for t in probe["tokens"]], 1), wanted["block_token65"], TOKENS)
    close(
        torch.stack([t[:, 0, :64] for t in probe["tokens"]], 1),
        wanted["block_token0_head64"],
        TOKENS,
    )
    close(tokens[:, ::16, :96], wanted["final_tokens_every16_head96"], TOKENS)
    close(tokens.norm(dim=2), wanted["final_token_l2"], TOKENS)
    close(tokens[:, :144].mean(1), wanted["final_channel_mean_template"], TOKENS)
    close(tokens[:, 144:].mean(1), wanted["final_channel_mean_search"], TOKENS)
    close(tokens[:, 144:].unflatten(1, (24, 24))[:, 12], wanted["final_search_row12"], TOKENS)


def test_golden_elimination(case):
    wanted, tokens, probe = case
    assert [t.shape[1] for t in probe["tokens"]] == [720] * 3 + [548] * 3 + [427] * 3 + [343] * 3
    assert [len(s[0]) - len(k[0]) for s, k in zip(probe["score"], probe["kept"], strict=True)] == [
        172,
        121,
        84,
    ]
    assert ((tokens[:, 144:] == 0).all(2).sum(1) == 377).all()
    for k in range(3):
        for b in range(len(tokens)):
            on_grid = np.full(
                (2, 576), np.nan
            )  # the order of candidates may differ where scores are equal
            on_grid[0, probe["candidates"][k][b]] = probe["score"][k][b]
            on_grid[1, wanted[f"ce{k}_candidates"][b]] = wanted[f"ce{k}_score"][b]
            np.testing.assert_allclose(on_grid[0], on_grid[1], rtol=0, atol=SCORES)
            assert set(probe["kept"][k][b].tolist()) == set(
                wanted[f"ce{k}_kept_sorted_by_score"][b].tolist()
            )


def ostrack(net: CLDTrackerNet) -> CLDTrackerNet:
    """The same weights without fusion, not copied."""
    with torch.device("meta"):
        plain = CLDTrackerNet(net.config.model_copy(update={"text": "none"}))
    plain.load_state_dict(net.state_dict(), assign=True)
    return plain.eval()


def test_golden_maps_and_boxes(case, net):
    wanted, tokens, _ = case
    for name, model in (("uniform", net), ("plain", ostrack(net))):
        maps = model.head(tokens)
        for key in ("score", "size", "offset"):
            close(maps[key], wanted[f"{name}/{key}_map"], MAPS)
        boxes, score, peak = decode(maps, hann_window())
        close(boxes, wanted[f"{name}/box_hann"], MAPS)
        close(score, wanted[f"{name}/score_at_argmax"], MAPS)
        close(peak, wanted[f"{name}/hann_top2"].max(1), MAPS)
        close(decode(maps, torch.ones(24, 24))[0], wanted[f"{name}/box_nohann"], MAPS)


def test_golden_fusion_with_two_text_vectors(forward, net):
    feature = torch.from_numpy(normal("forward/head/feature", (2, 768, 24, 24)))
    template, search = (
        torch.from_numpy(2 * normal(f"forward/head/text_{k}", (2, 768))).softmax(1)
        for k in ("template", "search")
    )
    fused = net.box_head(fuse(feature, (template, search)))
    plain = net.box_head(feature)
    for name, maps in (("head_text", fused), ("head_plain", plain)):
        for key in ("score", "size", "offset"):
            close(maps[key], forward[f"{name}/{key}_map"], MAPS)
    close(decode(fused, torch.ones(24, 24))[0], forward["head_text/pred_boxes"][:, 0], MAPS)


RUNS = [
    ("seqA", "uniform"),
    ("seqA", "text"),
    ("seqB", "uniform"),
    ("seqB", "text"),
    ("seqC", "uniform"),
]


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
    assert zlib.crc32(crop.tobytes()) == int(want["template_crop_crc32"])
    assert factor == float(want["template_resize_factor"])
    template = net.embed_template(
        normalise(torch.from_numpy(crop).permute(2, 0, 1)[None], torch.float32)
    )

    rows = np.arange(len(want["state_in"]))[:: 3 if variant == "text" else 1]
    want = {k: v[rows] for k, v in want.items() if v.ndim and len(v) > rows[-1]}
    state = torch.from_numpy(want["state_in"])
    n, (height, width) = len(state), frames.shape[1:3]
    heights, widths = torch.full((n,), height), torch.full((n,), width)
    geometry = crop_geometry(state, 4.0)
    assert torch.stack(geometry, 1).tolist() == want["crop_x1_y1_side"].tolist()
    base = torch.from_numpy(rows + 1) * frames[0].size  # row 0 belongs to frame 1
    crops = crop_batch(torch.from_numpy(frames).flatten(), base, heights, widths, *geometry, 384)
    assert [zlib.crc32(c.permute(1, 2, 0).numpy().tobytes()) for c in crops] == want[
        "crop_crc32"
    ].tolist()

    probe: dict[str, list[torch.Tensor]] = {}
    tokens = net.backbone_features(
        template.expand(n, -1, -1), normalise(crops, torch.float32), probe
    )
    assert probe["kept"][-1].sort(1).values.tolist() == want["kept_sorted"].tolist()
    text = None
    if variant == "text":
        text = torch.from_numpy(want["template_text"]), torch.from_numpy(want["search_text"])
    maps = net.head(tokens, text)
    for key in ("score", "size", "offset"):
        close(maps[key], want[f"{key}_map"], 5e-5)
    boxes, score, peak = decode(maps, hann_window())
    assert (maps["score"] * hann_window()).flatten(1).argmax(1).tolist() == want["argmax"].tolist()
    close(boxes, want["pred_cxcywh"], MAPS)
    close(score, want["score"], 5e-5)
    close(peak, want["hann_top2"].max(1), 5e-5)
    close(step_state(state, boxes, geometry[2], heights, widths), want["box_xywh"], 2e-3)


def test_names_and_shapes_are_the_official_checkpoint(golden):
    wanted = {e["name"]: tuple(e["shape"]) for e in json.loads((golden / "keys.json").read_text())}
    with torch.device("meta"):
        full = CLDTrackerNet(CLDTrackerConfig(text="parity")).state_dict()
        subset = CLDTrackerNet().state_dict()
    assert {name: tuple(t.shape) for name, t in full.items()} == wanted
    assert (len(full), sum(t.numel() for t in full.values())) == (549, 244_630_995)
    assert subset.keys() == {name for name in wanted if name.startswith(("backbone.", "box_head."))}
    assert len(subset) == 242


def test_floating_point_operations():
    """100.72 GF backbone, 7.45 GF head (spec, section 3.1)."""
    with torch.device("meta"):
        net = CLDTrackerNet().eval()
        template, search, tokens = (
            torch.empty(1, 3, 192, 192),
            torch.empty(1, 3, 384, 384),
            torch.empty(1, 720, 768),
        )
    with FlopCounterMode(display=False) as backbone:
        net.backbone_features(net.embed_template(template), search)
    with FlopCounterMode(display=False) as head:
        net.head(tokens)
    assert backbone.get_total_flops() / 1e9 == pytest.approx(100.72, abs=0.02)
    assert head.get_total_flops() / 1e9 == pytest.approx(7.45, abs=0.01)


def test_hann_window():
    line = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, 25) / 25))
    np.testing.assert_allclose(line[:3], [0.0157084, 0.0618467, 0.1355157], atol=1e-7)
    close(hann_window(), np.outer(line, line), 1e-7)
    assert float(hann_window().max()) == pytest.approx(0.9921, abs=1e-4)
    assert float(hann_window()[0, 0]) == pytest.approx(0.000247, abs=1e-6)


def test_decode_finds_the_place_and_back_mapping_undoes_the_crop():
    maps = {
        "score": torch.full((2, 1, 24, 24), 0.1),
        "offset": torch.zeros(2, 2, 24, 24),
        "size": torch.zeros(2, 2, 24, 24),
    }
    maps["score"][0, 0, 7, 15], maps["score"][1, 0, 12, 11] = 0.9, 0.8
    maps["offset"][0, :, 7, 15], maps["size"][0, :, 7, 15] = (
        torch.tensor([0.25, 0.75]),
        torch.tensor([0.2, 0.1]),
    )
    boxes, score, peak = decode(maps, hann_window())
    torch.testing.assert_close(boxes[0], torch.tensor([15.25 / 24, 7.75 / 24, 0.2, 0.1]))
    torch.testing.assert_close(score, torch.tensor([0.9, 0.8]))
    torch.testing.assert_close(
        peak, score * torch.stack([hann_window()[7, 15], hann_window()[12, 11]])
    )
    target = torch.tensor(
        [[100.25, 80.5, 40.0, 30.0]], dtype=torch.float64
    )  # in a picture of 300 x 400
    before, side = (
        torch.tensor([[90.0, 85.0, 38.0, 33.0]], dtype=torch.float64),
        torch.tensor([160]),
    )
    corner = before[:, :2] + before[:, 2:] / 2 - side / 2
    seen = torch.cat([target[:, :2] + target[:, 2:] / 2 - corner, target[:, 2:]], 1) / side
    torch.testing.assert_close(
        step_state(before, seen, side, torch.tensor([300]), torch.tensor([400])), target
    )


@pytest.mark.parametrize(
    ("pixels", "wanted"),
    [
        ((-30, -20, 15, 12), (0, 0, 10, 10)),  # left of and above the picture
        ((395, 296, 40, 40), (390, 290, 10, 10)),  # at least the margin reaches in
        ((100, 100, 2, 3), (100, 100, 10, 10)),  # too small
        ((-10, 50, 500, 60), (0, 50, 400, 60)),  # wider than the picture
    ],
)
def test_states_are_cut_to_the_picture_with_a_margin_of_10(pixels, wanted):
    state = torch.tensor([[180.0, 130.0, 40.0, 40.0]], dtype=torch.float64)  # centre 200, 150
    x, y, w, h = pixels
    seen = torch.tensor(
        [[(x + w / 2 - 120) / 160, (y + h / 2 - 70) / 160, w / 160, h / 160]], dtype=torch.float64
    )
    found = step_state(state, seen, torch.tensor([160]), torch.tensor([300]), torch.tensor([400]))
    torch.testing.assert_close(
        found, torch.tensor([wanted], dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_a_state_of_nan_stays_nan():
    nan = torch.full((1, 4), float("nan"), dtype=torch.float64)
    box, size = torch.full((1, 4), 0.5), torch.tensor([100])
    assert step_state(nan, box, size, size, size)[0, :2].isnan().all()
    assert step_state(torch.ones(1, 4), nan, size, size, size).isnan().all()


@pytest.mark.parametrize(
    "config", [TINY, CLDTrackerConfig.tiny(template=96, keep_at=(0,))], ids=["even", "other"]
)
def test_the_choice_is_that_of_full_attention(config):
    net = seed_module(CLDTrackerNet(config), extra=False).eval()
    first = config.keep_at[0]
    block, n = net.backbone.blocks[first], config.template_grid**2
    x = torch.from_numpy(normal("x", (3, n + config.search_grid**2, config.dim)))
    q, k, _ = (
        block.attn.qkv(block.norm1(x))
        .view(3, -1, 3, config.heads, config.dim // config.heads)
        .permute(2, 0, 3, 1, 4)
    )
    attention = (q @ k.mT / (config.dim // config.heads) ** 0.5).softmax(-1).mean(1)
    middle = (config.template_grid - 1) // 2  # 12 -> 5
    wanted = attention[:, middle * config.template_grid + middle, n:]
    _, kept, score = block.eliminate(x, n, net.backbone.centre, net.backbone.keep[first])
    torch.testing.assert_close(score, wanted)
    assert kept.tolist() == wanted.topk(kept.shape[1]).indices.tolist()


def test_the_centre_of_the_official_template_is_row_5_column_5():
    with torch.device("meta"):
        backbone = CLDTrackerNet().backbone
    assert backbone.centre == 65
    assert backbone.keep == {3: 404, 6: 283, 9: 199}


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    z, x = (
        normal(name, (batch, 3, side, side))
        for name, side in (("z", TINY.template), ("x", TINY.search))
    )
    return torch.from_numpy(z), torch.from_numpy(x)


def test_a_batch_is_its_members(tiny):
    z, x = inputs(5)
    together = tiny(z, x)
    assert {k: tuple(v.shape) for k, v in together.items()} == {
        "score": (5, 1, 8, 8),
        "offset": (5, 2, 8, 8),
        "size": (5, 2, 8, 8),
    }
    for i in range(5):
        alone = tiny(z[i : i + 1], x[i : i + 1])
        for key, value in alone.items():
            torch.testing.assert_close(value, together[key][i : i + 1], atol=1e-5, rtol=0)


def test_uniform_text_is_twice_the_channel_mean_and_no_text_is_ostrack(tiny):
    z, x = inputs(2)
    even = torch.full((2, TINY.dim), 1 / TINY.dim)
    for key, value in tiny(z, x, (even, even)).items():
        torch.testing.assert_close(value, tiny(z, x)[key], atol=1e-6, rtol=0)
    plain = ostrack(tiny)
    assert (plain(z, x)["score"] - tiny(z, x)["score"]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="none"):
        plain(z, x, (even, even))


def test_an_untrained_text_branch_moves_the_feature_by_less_than_half_a_percent():
    feature = torch.from_numpy(0.05 + normal("feature", (1, 768, 24, 24)))
    rows = torch.nn.functional.normalize(torch.from_numpy(normal("t", (2, 512))), dim=1)
    template, search = torch.nn.Linear(512, 768)(rows).softmax(1)[:, None]
    uniform, parity = fuse(feature, None), fuse(feature, (template, search))
    assert (parity - uniform).norm() / uniform.norm() < 0.005


def test_bfloat16_changes_little_and_maps_stay_float32(tiny):
    z, x = inputs(2)
    exact, half = (
        tiny(z, x),
        seed_module(CLDTrackerNet(TINY), extra=False).eval().bfloat16()(z.bfloat16(), x.bfloat16()),
    )
    with torch.autocast("cpu", torch.bfloat16):
        mixed = tiny(z, x)
    for other in (half, mixed):
        for key, value in other.items():
            assert value.dtype == torch.float32
            assert torch.corrcoef(torch.stack([value.flatten(), exact[key].flatten()]))[0, 1] > 0.97
        assert other["score"].max() < 1


def test_it_can_be_trained():
    net = CLDTrackerNet(TINY)
    with torch.enable_grad():
        maps = net(*inputs(2))
        sum(m.square().mean() for m in maps.values()).backward()
    unused = {name for name, p in net.named_parameters() if p.grad is None}
    assert unused == {"backbone.cls_token", "backbone.pos_embed"}
    assert all(p.isfinite().all() for p in net.parameters())


def test_inputs_of_another_size_are_refused(tiny):
    z, x = inputs(1)
    with pytest.raises(
        ValueError, match=r"search has shape \[1, 3, 64, 64\], expected \[B, 3, 128, 128\]"
    ):
        tiny(z, z)
    with pytest.raises(ValueError, match="template"):
        tiny(x, x)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 5},
        {"search": 100},
        {"template": 8},
        {"head_channels": 20},
        {"keep_ratio": 0},
        {"keep_at": (2, 1)},
        {"keep_at": (4,)},
    ],
    ids=str,
)
def test_configs_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValidationError):
        CLDTrackerConfig.tiny(**changes)
