"""Noise on trajectories: exactly as much as asked for, the same for the same seed, and nothing else."""

import numpy as np
import pytest

from model.corruption import Corruption, corrupt


def walk(frames=200, offset=0.0):
    x = np.linspace(0, 400, frames) + offset
    return np.stack([x, x * 0.5, x + 40, x * 0.5 + 20], 1).astype(np.float32)


def changed(a, b):
    return (a != b).any(1)


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
    assert (np.diff(np.concatenate([[0], switched, [0]]).astype(int)) == 1).sum() == segments


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
