"""TSF tokens: Table 9's paths, the choice of crops, and crops that hold the target on wide video."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from model.tsf import TSFConfig, TSFInjector, crop_boxes

C, T, D = 6, 10, 8  # widths: crop features, temporal projector's input, language model


@pytest.fixture
def projectors():
    """A host's two projectors: not linear, so that the order of mean and projection matters."""
    torch.manual_seed(0)
    return tuple(nn.Sequential(nn.Linear(n, 16), nn.GELU(), nn.Linear(16, D)) for n in (C, T))


@pytest.fixture
def features():
    return torch.randn(4, 5, C, generator=torch.Generator().manual_seed(1))


def injector(temporal_dim: int | None = T, **options) -> TSFInjector:
    torch.manual_seed(2)
    return TSFInjector(TSFConfig(**options), C, D, temporal_dim)


# --- the paths of Table 9 ---


@pytest.mark.parametrize(
    ("path", "tokens"), [("none", 0), ("spatial", 4), ("temporal", 4), ("concat", 8), ("sum", 4)]
)
def test_extra_tokens(path, tokens, features, projectors):
    module = injector(path=path)
    assert module.config.tokens == tokens
    assert module(features, *projectors).shape == (tokens, D)


def test_a_token_is_the_mean_of_a_crop_s_projected_patches(features, projectors):
    spatial, temporal = projectors
    module = injector(path="concat")
    out = module(features, spatial, temporal)
    torch.testing.assert_close(out[:4], torch.stack([spatial(crop).mean(0) for crop in features]))
    torch.testing.assert_close(
        out[4:], torch.stack([temporal(module.bridge(crop)).mean(0) for crop in features])
    )


def test_paths_share_their_parts(features, projectors):
    both = injector(path="concat")(features, *projectors)
    torch.testing.assert_close(injector(path="spatial")(features, *projectors), both[:4])
    torch.testing.assert_close(injector(path="temporal")(features, *projectors), both[4:])
    torch.testing.assert_close(injector(path="sum")(features, *projectors), both[:4] + both[4:])


def test_the_host_s_projectors_are_borrowed_and_only_the_bridge_is_new(features, projectors):
    assert list(injector(path="spatial").parameters()) == []
    with torch.device("meta"):
        real = TSFInjector(TSFConfig(path="sum"), 1024, 3072, 1408)
    assert sum(p.numel() for p in real.parameters()) == 1_443_200
    module = injector(path="sum")
    module(features, *projectors).sum().backward()
    for part in (module, *projectors):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_hosts_without_a_temporal_projector_refuse_table_9_s_other_paths(features, projectors):
    assert injector(None, path="spatial")(features, projectors[0]).shape == (4, D)
    for path in ("temporal", "concat", "sum"):
        with pytest.raises(ValueError, match=f"{path}.*videoglamm"):
            injector(None, path=path)
    with pytest.raises(ValueError, match="project_temporal"):
        injector(path="sum")(features, projectors[0])


def test_mean_first_is_all_that_stored_features_allow(features, projectors):
    after, before = injector(), injector(pool="before")
    spatial = projectors[0]
    stored = before(features.mean(1), spatial)
    torch.testing.assert_close(stored, before(features, spatial))
    torch.testing.assert_close(stored, spatial(features.mean(1)))
    assert not torch.allclose(stored, after(features, spatial), atol=1e-3)
    with pytest.raises(ValueError, match="pool='before'"):
        after(features.mean(1), spatial)


def test_wrong_shapes_are_named(features, projectors):
    spatial = projectors[0]
    for wrong in (features[:3], features[..., :5], features[0, 0], features[None]):
        with pytest.raises(ValueError, match=r"k = 4.*got"):
            injector()(wrong, spatial)
    with pytest.raises(ValueError, match=r"projectors must give \[4, 8\]"):
        injector()(features, lambda x: x)
    with pytest.raises(ValidationError, match="path"):
        TSFConfig(path="spatail")


# --- selection inside the model (release) ---


def test_online_selection_is_the_released_k_means(shared):
    cases = json.loads((shared / "golden/proposer/kmeans.json").read_text())
    vectors = np.load(shared / "golden/proposer/kmeans.npz")
    seen = 0
    for case in cases:
        x = torch.from_numpy(vectors[case["name"]])
        if case["iterations"] != 8 or case["k"] < 1:
            continue
        config = TSFConfig(selection="online", k=case["k"])
        tokens = TSFInjector(config, x.shape[1], x.shape[1])(x[:, None], nn.Identity())
        slots = case["acceptable_indices_per_slot"]
        for token, slot in zip(tokens, slots, strict=False):
            assert any(torch.equal(token, x[i]) for i in slot), case["name"]
        assert len(tokens) == case["k"]
        seen += 1
    assert seen > 10


def test_online_selection_learns_through_what_it_chose(projectors):
    crops = torch.randn(16, 5, C, requires_grad=True)
    tokens = injector(selection="online")(crops, projectors[0])
    tokens.sum().backward()
    used = crops.grad.abs().sum((1, 2)) > 0
    chosen = {
        i
        for i in range(16)
        for t in tokens
        if torch.allclose(projectors[0](crops[i]).mean(0), t, atol=1e-6)
    }
    assert 1 <= len(chosen) <= 4
    assert set(used.nonzero().flatten().tolist()) == chosen


def test_few_crops_fill_every_slot(projectors):
    crops = torch.randn(2, 5, C)
    for path, count in (("spatial", 4), ("concat", 8)):
        tokens = injector(path=path, selection="online")(crops, *projectors)
        assert tokens.shape == (count, D)
        torch.testing.assert_close(tokens[1:4], tokens[1].expand(3, -1))
    with pytest.raises(ValueError, match="N > 0"):
        injector(selection="online")(crops[:0], projectors[0])


# --- when ---


def test_when_prompts_have_tsf():
    draws = np.arange(1000) / 1000
    share = [
        np.mean([TSFConfig(dropout=p).wanted(training=True, draw=d) for d in draws])
        for p in (0, 0.25, 1)
    ]
    assert share == [1, 0.75, 0]
    assert not TSFConfig().wanted(
        training=False
    )  # the paper's default: trained with, asked without
    assert TSFConfig(infer=True).wanted(training=False)
    assert not TSFConfig(train=False).wanted(training=True, draw=0.9)
    assert not TSFConfig(path="none", infer=True).wanted(training=False)


# --- crops ---


def test_crops_hold_the_target_wherever_it_is_on_wide_and_tall_video():
    """The release's way, out of the centre square, shows background instead."""
    for height, width in ((60, 200), (200, 60)):
        frame = np.zeros((height, width, 3), np.uint8)
        y, x = (20, 10) if width > height else (150, 20)
        frame[y : y + 20, x : x + 30] = 255
        box = np.array([x / width, y / height, (x + 30) / width, (y + 20) / height])
        (crop,) = crop_boxes([frame], box[None])
        assert crop.shape == (20, 30, 3)
        assert (crop == 255).all()

        side = min(height, width)
        square = frame[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
        assert crop_boxes([square], box[None])[0].mean() < 128


def test_each_box_has_its_own_frame():
    frames = [np.full((h, w, 3), value, np.uint8) for h, w, value in ((10, 20, 1), (40, 10, 2))]
    crops = crop_boxes(frames, [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    assert [c.shape for c in crops] == [(5, 10, 3), (20, 5, 3)]
    assert [c.max() for c in crops] == [1, 2]


@pytest.mark.parametrize(
    "box",
    [
        [0.5, 0.5, 0.5, 0.5],
        [1.0, 1.0, 1.0, 1.0],
        [-1, -1, 0, 0],
        [2, 2, 3, 3],
        [0.9, 0.2, 0.1, 0.1],
    ],
)
def test_a_box_without_area_gives_one_pixel(box):
    (crop,) = crop_boxes([np.zeros((30, 50, 3), np.uint8)], [box])
    assert crop.shape[0] == 1 or crop.shape[1] == 1
    assert crop.size > 0


def test_boxes_reach_over_the_border_and_bad_ones_are_named():
    frame = np.arange(30 * 50 * 3, dtype=np.uint32).reshape(30, 50, 3).astype(np.uint8)
    np.testing.assert_array_equal(crop_boxes([frame], [[-0.5, -0.1, 1.5, 2]])[0], frame)
    with pytest.raises(ValueError, match=r"\[1, 4\], got \[2, 4\]"):
        crop_boxes([frame], np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"\[H, W, 3\]"):
        crop_boxes([frame[..., 0]], np.zeros((1, 4)))
    with pytest.raises(ValueError, match="absent"):
        crop_boxes([frame], np.full((1, 4), np.nan))
