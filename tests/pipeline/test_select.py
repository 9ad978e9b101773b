"""Selection: distinct frames in time order that cover the looks of the target; golden numbers for the release's way."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.select import candidates, crop, evenly_spaced, release_kmeans, select_representatives
from tests.conftest import ABSENT, SHARED

GOLDEN = SHARED / "golden" / "proposer"
FRAME = (360, 640)


def boxes_at(x, y=100.0, side=50.0) -> np.ndarray:
    x, y = np.broadcast_arrays(np.asarray(x, float), y)
    return np.stack([x, y, x + side, y + side], 1)


def looks(n_per: int, k: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    """k well separated groups in time order."""
    rng = np.random.default_rng(seed)
    return np.repeat(5 * rng.normal(size=(k, dim)), n_per, 0) + 0.1 * rng.normal(
        size=(n_per * k, dim)
    )


# --- select_representatives ---


def test_one_of_each_look():
    picks = select_representatives(looks(5, 4), boxes_at(np.full(20, 10.0)), FRAME)
    assert (picks // 5).tolist() == [0, 1, 2, 3]
    assert picks.dtype == np.int64


def test_one_of_each_place_if_the_looks_are_equal():
    x = np.repeat([0.0, 200, 400, 580], 5) + np.tile(np.arange(5), 4)
    picks = select_representatives(np.ones((20, 8)), boxes_at(x), FRAME)
    assert (picks // 5).tolist() == [0, 1, 2, 3]


def test_the_weight_decides_between_look_and_place():
    """Two looks that alternate, on a target in two places: the weight says which pair is found."""
    look = np.where(np.arange(12) % 2, 1.0, -1.0)[:, None] * np.ones(8)
    boxes = boxes_at(np.where(np.arange(12) < 6, 0.0, 500.0))
    by_look = select_representatives(look, boxes, FRAME, k=2, spatial_weight=0.1)
    by_place = select_representatives(look, boxes, FRAME, k=2, spatial_weight=10)
    assert len(set(by_look % 2)) == 2
    assert len(set(by_place // 6)) == 2


def test_without_weight_boxes_do_not_matter():
    rng = np.random.default_rng(1)
    features = looks(5, 4, seed=2)
    one, two = (
        select_representatives(features, boxes_at(rng.uniform(0, 500, 20)), FRAME, spatial_weight=0)
        for _ in range(2)
    )
    assert one.tolist() == two.tolist()


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 7.0, 1e6, 1e30])
def test_the_unit_of_features_does_not_matter(factor):
    features, boxes = looks(4, 5, seed=3), boxes_at(np.linspace(0, 500, 20))
    picks = select_representatives(features, boxes, FRAME)
    assert select_representatives(features * factor, boxes, FRAME).tolist() == picks.tolist()


def test_the_size_of_the_video_does_not_matter():
    features, boxes = looks(4, 5, seed=3), boxes_at(np.linspace(0, 500, 20))
    assert (
        select_representatives(features, boxes, FRAME).tolist()
        == select_representatives(features, boxes * 3, (1080, 1920)).tolist()
    )


@settings(max_examples=30)
@given(st.integers(1, 24), st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_always_distinct_ascending_and_repeatable(n, k, seed, coarse):
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 2, (n, 3)).astype(float) if coarse else rng.normal(size=(n, 3))
    boxes = boxes_at(rng.integers(0, 3, n) * 100.0)
    picks = select_representatives(features, boxes, FRAME, k=k)
    assert len(picks) == min(n, k)
    assert (np.diff(picks) > 0).all()
    assert ((picks >= 0) & (picks < n)).all()
    assert select_representatives(features, boxes, FRAME, k=k).tolist() == picks.tolist()


@pytest.mark.parametrize("n", [1, 3, 4])
def test_few_samples_are_all_taken(n):
    assert select_representatives(np.ones((n, 2)), boxes_at(np.zeros(n)), FRAME).tolist() == list(
        range(n)
    )


def test_identical_samples_still_give_k_frames():
    picks = select_representatives(np.ones((9, 4)), boxes_at(np.zeros(9)), FRAME)
    assert len(set(picks.tolist())) == 4


def test_noise_of_a_target_that_stands_still_is_not_blown_up():
    """Boxes that tremble by a hundredth of a pixel must not outweigh nothing at all."""
    x = 100 + 0.01 * np.random.default_rng(0).normal(size=20)
    features = looks(5, 4, seed=4)
    picks = select_representatives(features, boxes_at(x), FRAME, spatial_weight=50)
    assert (picks // 5).tolist() == [0, 1, 2, 3]


def test_lists_and_halves_are_accepted():
    features = looks(5, 4).astype(np.float16)
    assert (
        len(select_representatives(features.tolist(), boxes_at(np.zeros(20)).tolist(), FRAME)) == 4
    )


@pytest.mark.parametrize(
    ("features", "boxes", "frame", "k", "text"),
    [
        (np.ones((0, 4)), np.ones((0, 4)), FRAME, 4, "N, D > 0"),
        (np.ones((5, 0)), boxes_at(np.zeros(5)), FRAME, 4, "N, D > 0"),
        (np.ones(5), boxes_at(np.zeros(5)), FRAME, 4, "must be \\[N, D\\]"),
        (np.ones((5, 2)), boxes_at(np.zeros(4)), FRAME, 4, "boxes must be \\[5, 4\\]"),
        (np.ones((5, 2)), np.ones((5, 3)), FRAME, 4, "boxes must be"),
        (np.full((5, 2), np.nan), boxes_at(np.zeros(5)), FRAME, 4, "NaN"),
        (np.full((5, 2), np.inf), boxes_at(np.zeros(5)), FRAME, 4, "infinity"),
        (
            np.ones((5, 2)),
            np.full((5, 4), np.nan),
            FRAME,
            4,
            "no box in samples \\[0, 1, 2, 3, 4\\]",
        ),
        (np.ones((5, 2)), boxes_at(np.zeros(5)), (0, 640), 4, "frame_size"),
        (np.ones((5, 2)), boxes_at(np.zeros(5)), FRAME, 0, "k must be >= 1"),
    ],
)
def test_wrong_input_is_named(features, boxes, frame, k, text):
    with pytest.raises(ValueError, match=text):
        select_representatives(features, boxes, frame, k=k)


# --- release_kmeans ---


def golden_cases():
    path = GOLDEN / "kmeans.json"
    if not path.exists():
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=ABSENT))]
    return [pytest.param(case, id=case["name"]) for case in json.loads(path.read_text())]


@pytest.mark.parametrize("case", golden_cases())
def test_the_release_selects_these(case):
    with np.load(GOLDEN / "kmeans.npz") as vectors:
        picks = release_kmeans(vectors[case["name"]], case["k"], case["iterations"])
    slots = case["acceptable_indices_per_slot"]
    assert len(picks) == len(slots)
    assert all(pick in slot for pick, slot in zip(picks.tolist(), slots, strict=True)), picks


def test_a_tie_goes_to_the_earlier_sample():
    """Four pairs around far centres: each centre is the midpoint of its pair."""
    rng = np.random.default_rng(5)
    centres, half = 100 * rng.normal(size=(4, 64)), rng.normal(size=(4, 64))
    pairs = np.stack([centres - half, centres + half], 1).reshape(8, 64)
    assert release_kmeans(pairs).tolist() == [0, 2, 4, 6]


def test_the_release_may_take_a_sample_twice():
    assert release_kmeans(np.ones((8, 4))).tolist() == [0, 0, 0, 0]


def test_the_release_on_few_samples():
    assert release_kmeans(np.ones((0, 4))).tolist() == []
    assert release_kmeans(np.ones((3, 4))).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="N, D"):
        release_kmeans(np.ones(3))
    with pytest.raises(ValueError, match="NaN"):
        release_kmeans(np.full((8, 2), np.nan))


# --- candidates and crops ---


@given(st.integers(0, 200), st.integers(0, 60))
def test_evenly_spaced_indices_are_distinct_and_include_the_ends(n, count):
    picks = evenly_spaced(n, count)
    assert len(picks) == min(n, count)
    assert (np.diff(picks) > 0).all()
    if 2 <= count <= n:
        assert (picks[0], picks[-1]) == (0, n - 1)
        assert np.ptp(np.diff(picks)) <= 1


def test_candidates_are_kept_frames():
    kept = np.zeros(50, bool)
    kept[10:40:2] = True
    picks = candidates(kept, 4)
    assert kept[picks].all()
    assert (picks[0], picks[-1]) == (10, 38)
    assert candidates(kept, 99).tolist() == list(range(10, 40, 2))
    assert candidates(np.zeros(5, bool), 4).tolist() == []


@given(*[st.floats(-30, 60)] * 4, st.floats(0, 2))
def test_a_crop_is_never_empty(x, y, w, h, margin):
    frame = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)
    got = crop(frame, [x, y, x + abs(w), y + abs(h)], margin)
    assert got.ndim == 3
    assert got.shape[2] == 3
    assert got.size > 0


def test_a_crop_holds_every_pixel_that_the_box_touches():
    frame = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    assert np.array_equal(crop(frame, [3, 4, 9, 11]), frame[4:11, 3:9])
    assert np.array_equal(crop(frame, [3.5, 4.5, 8.5, 10.5]), frame[4:11, 3:9])
    assert np.array_equal(crop(frame, [10, 4, 20, 8], 0.5), frame[2:10, 5:25])
    assert np.array_equal(crop(frame, [-5, -5, 50, 50]), frame)
    one = crop(frame, [3, 4, 9, 11])
    one[:] = 0
    assert frame.any()
    with pytest.raises(ValueError, match="absent"):
        crop(frame, [np.nan] * 4)
