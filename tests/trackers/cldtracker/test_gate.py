"""The gate: which boxes of a tracker that always gives one are believed, and where a film cuts."""

import numpy as np

from trackers.cldtracker.gate import GateConfig, judge, scene_cuts

CONFIG = GateConfig(lost_below=0.25, patience=3, found_above=0.4, max_area_jump=4.0)
START = np.array([10.0, 10, 20, 20])


def verdict(scores, cut=(), sizes=None):
    boxes = np.tile(START, (len(scores), 1))
    if sizes is not None:
        boxes[:, 2:] = np.array(sizes, float)[:, None]
    cuts = np.zeros(len(scores), bool)
    cuts[list(cut)] = True
    return judge(boxes, np.array(scores, np.float32), cuts, START, CONFIG)


def test_good_scores_are_believed():
    found = verdict([0.9] * 5)
    assert found.visible.all()
    assert found.lost_at is None


def test_a_short_dip_is_bridged_and_a_long_one_is_lost_from_its_first_frame():
    assert verdict([0.9, 0.1, 0.1, 0.9, 0.9]).visible.all()
    found = verdict([0.9, 0.1, 0.1, 0.1, 0.1, 0.3, 0.3])
    assert found.visible.tolist() == [True] + [False] * 6
    assert found.lost_at == 3


def test_a_lost_target_is_believed_again_only_above_the_higher_threshold():
    found = verdict([0.1, 0.1, 0.1, 0.3, 0.39, 0.41, 0.3])
    assert found.visible.tolist() == [False, False, False, False, False, True, True]
    assert found.lost_at == 2


def test_a_cut_needs_a_good_score_behind_it():
    assert verdict([0.9, 0.3, 0.3], cut=[1]).visible.tolist() == [True, False, False]
    assert verdict([0.9, 0.5, 0.3], cut=[1]).visible.all()


def test_a_jump_in_area_counts_as_a_low_score():
    assert verdict([0.9] * 4, sizes=[20, 60, 20, 60]).visible.tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert verdict([0.9] * 4, sizes=[20, 60, 60, 60]).visible.all()  # once: a dip


def scene(seed: int, n: int, drift: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (9, 24, 3), dtype=np.uint8)
    wide = np.repeat(np.repeat(blocks, 10, 0), 10, 1)
    noise = np.random.default_rng(seed + 1)
    frames = [
        wide[:, drift * t : drift * t + 160].astype(int) + noise.integers(-6, 7, (90, 160, 3))
        for t in range(n)
    ]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def test_cuts_are_found_where_they_are():
    frames = np.concatenate([scene(0, 8), scene(2, 5), scene(4, 7)])
    assert np.flatnonzero(scene_cuts(frames, 28.0)).tolist() == [8, 13]


def test_motion_noise_and_stills_are_no_cuts():
    for frames in (
        scene(0, 10),
        scene(1, 8, drift=8),
        np.zeros((5, 40, 40, 3), np.uint8),
        scene(0, 1),
    ):
        assert not scene_cuts(frames, 28.0).any()
    assert not scene_cuts(np.concatenate([scene(0, 4), scene(2, 4)]), 0).any()
