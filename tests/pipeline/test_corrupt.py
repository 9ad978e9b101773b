"""Noise on trajectories: exactly as much as asked for, the same for the same seed, and nothing else."""

import numpy as np
import pytest

from pipeline.corrupt import Corruption, corrupt, make_trajectory
from schemas.geometry import is_box

SIZE = (600, 1000)


def walk(frames=200, offset=0.0):
    x = np.linspace(0, 400, frames) + offset
    return np.stack([x, x * 0.5, x + 40, x * 0.5 + 20], 1).astype(np.float32)


def changed(a, b):
    return (a != b).any(1)


def runs(flags) -> int:
    """Stretches of true values."""
    return int((np.diff(np.concatenate([[0], flags, [0]]).astype(int)) == 1).sum())


@pytest.mark.parametrize("level", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("segments", [1, 3])
def test_id_switch_takes_the_share_of_frames_in_contiguous_segments(level, segments):
    mine, other = walk(), walk(offset=1000)
    noisy = corrupt(
        mine, Corruption(kind="id_switch", level=level, segments=segments), (other,), key=4
    )
    switched = changed(noisy, mine)
    assert switched.sum() == round(level * len(mine))
    np.testing.assert_array_equal(noisy[switched], other[switched])
    assert runs(switched) == segments


@pytest.mark.parametrize("level", [0.1, 0.3, 0.5])
def test_dropout_removes_the_share_of_frames(level):
    noisy = corrupt(walk(), Corruption(kind="dropout", level=level))
    assert np.isnan(noisy).all(1).sum() == round(level * 200)
    assert np.isnan(noisy).any(1).sum() == np.isnan(noisy).all(1).sum()


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_jitter_is_relative_to_the_box(level):
    mine = walk()
    noisy = corrupt(mine, Corruption(kind="jitter", level=level)).astype(float)
    size, was = noisy[:, 2:] - noisy[:, :2], mine[:, 2:] - mine[:, :2]
    shift = ((noisy[:, :2] + noisy[:, 2:]) - (mine[:, :2] + mine[:, 2:])) / 2
    assert changed(noisy, mine).all()
    assert 0.8 * level < np.abs(size / was - 1).max() <= level + 1e-4
    assert 0.8 * level < np.abs(shift / was).max() <= level + 1e-4


@pytest.mark.parametrize("kind", ["jitter", "id_switch", "dropout"])
def test_seed_and_key_decide_everything(kind):
    options, others = Corruption(kind=kind, level=0.2), (walk(offset=7),)
    first = corrupt(walk(), options, others, key=1)
    np.testing.assert_array_equal(first, corrupt(walk(), options, others, key=1))
    assert changed(
        np.nan_to_num(first), np.nan_to_num(corrupt(walk(), options, others, key=2))
    ).any()


def test_frames_without_the_target_stay_without_it():
    mine = walk()
    mine[50:100] = np.nan
    for kind in ("jitter", "id_switch", "dropout"):
        assert np.isnan(corrupt(mine, Corruption(kind=kind, level=0.5), (walk(),))[50:100]).all()


def test_a_lone_target_cannot_switch():
    with pytest.raises(ValueError, match="another trajectory"):
        corrupt(walk(), Corruption(kind="id_switch", level=0.1))


def test_a_switch_is_placed_where_the_other_target_is():
    mine, other = walk(), walk(offset=1000)
    other[:90] = other[140:] = np.nan
    for key in range(20):
        noisy = corrupt(mine, Corruption(kind="id_switch", level=0.2), (other,), key=key)
        switched = changed(noisy, mine)
        assert switched.sum() == 40
        assert runs(switched) == 1
        np.testing.assert_array_equal(noisy[switched], other[switched])


def test_a_segment_avoids_the_gap_of_the_other_target_where_there_is_room():
    mine, other = walk(), walk(offset=1000)
    other[60:80] = np.nan
    firsts = set()
    for key in range(30):
        noisy = corrupt(mine, Corruption(kind="id_switch", level=0.1), (other,), key=key)
        switched = changed(noisy, mine)
        assert (switched.sum(), runs(switched)) == (20, 1)
        firsts.add(bool(np.flatnonzero(switched)[0] < 60))
    assert firsts == {True, False}  # on both sides of the gap


def test_where_the_other_target_is_in_fewer_frames_all_of_them_are_switched():
    mine, other = walk(), walk(offset=1000)
    other[10:] = np.nan
    made = make_trajectory(mine, Corruption(kind="id_switch", level=0.2), "a", SIZE, (other,))
    assert (made.n_corrupted, made.n_corruptible, made.n_switchable) == (10, 200, 10)
    np.testing.assert_array_equal(made.boxes[:10], other[:10])


def test_of_several_others_one_with_enough_frames_is_taken():
    mine, brief = walk(), walk(offset=2000)
    brief[5:] = np.nan
    long = [walk(offset=1000), walk(offset=3000)]
    taken = set()
    for key in range(30):
        options = Corruption(kind="id_switch", level=0.2)
        noisy = corrupt(mine, options, (brief, *long), key=key)
        switched = changed(noisy, mine)
        assert switched.sum() == 40
        taken.add(
            next(i for i, other in enumerate(long) if not changed(noisy, other)[switched].any())
        )
    assert taken == {0, 1}


@pytest.mark.parametrize("frames", [1, 2, 3, 50])
def test_below_level_1_dropout_leaves_a_box(frames):
    noisy = corrupt(walk(frames), Corruption(kind="dropout", level=0.99))
    assert is_box(noisy).sum() == 1
    assert not is_box(corrupt(walk(frames), Corruption(kind="dropout", level=1.0))).any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"level": 0.05}, "level 0.05 without a kind changes nothing"),
        ({"kind": "jitter"}, "kind jitter at level 0 changes nothing"),
        ({"kind": "jitter", "level": 1.5}, "less than or equal to 1"),
        ({"kind": "jitter", "level": 0.1, "seed": -1}, "greater than or equal to 0"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Corruption(**given)


def test_what_was_corrupted_is_counted():
    mine = walk()
    mine[:20] = np.nan
    dropped = make_trajectory(mine, Corruption(kind="dropout", level=0.5), "a", SIZE)
    assert (dropped.n_corrupted, dropped.n_corruptible, dropped.n_switchable) == (90, 180, None)
    assert is_box(dropped.boxes).sum() == 90
    clean = make_trajectory(mine, Corruption(), "a", SIZE)
    assert (clean.n_corrupted, clean.n_corruptible, clean.n_switchable) == (0, 180, None)
    np.testing.assert_array_equal(clean.boxes, mine)


def test_jittered_boxes_are_cut_to_the_frame():
    mine = walk()
    made = make_trajectory(mine, Corruption(kind="jitter", level=0.2), "a", (210, 430))
    assert (made.boxes >= 0).all()
    assert (made.boxes[:, 2] <= 430).all()
    assert (made.boxes[:, 3] <= 210).all()
    assert made.n_corrupted == made.n_corruptible == 200


def test_the_referents_id_decides_the_draws():
    options = Corruption(kind="jitter", level=0.1)
    first, again, other = (make_trajectory(walk(), options, key, SIZE).boxes for key in "aab")
    np.testing.assert_array_equal(first, again)
    assert changed(first, other).all()
