"""The weight-free tracker follows, loses, finds again, and gives the same numbers every time."""

from contextlib import suppress

import cv2
import numpy as np
import pytest

from schemas.geometry import area, iou, is_box
from schemas.records import ORIGINS, Quarantined, Reason
from trackers.csrt import CSRTConfig, CSRTTracker

HEIGHT, WIDTH = 120, 200
rng = np.random.default_rng(0)


def texture(height, width, cell, low=0, high=255, seed=0):
    blocks = np.random.default_rng(seed).integers(
        low, high, (height // cell + 1, width // cell + 1, 3)
    )
    return np.kron(blocks, np.ones((cell, cell, 1)))[:height, :width].astype(np.uint8)


BACKGROUND = cv2.GaussianBlur(texture(HEIGHT, WIDTH, 10, 60, 140, seed=1), (0, 0), 4)
TARGET = texture(30, 40, 10, seed=2)


def scene(places, target=TARGET) -> tuple[np.ndarray, np.ndarray]:
    """Frames [T, H, W, 3] and boxes [T, 4]; a place of None hides the target."""
    frames, boxes = (
        np.repeat(BACKGROUND[None], len(places), 0),
        np.full((len(places), 4), np.nan, np.float32),
    )
    height, width = target.shape[:2]
    for t, place in enumerate(places):
        if place is not None:
            x, y = place
            frames[t, y : y + height, x : x + width] = target
            boxes[t] = x, y, x + width, y + height
    return frames, boxes


MOVING = [(10 + 6 * t, 20 + 2 * t) for t in range(21)]


def test_it_follows_both_ways_from_the_key_frame():
    frames, truth = scene(MOVING)
    [track] = CSRTTracker().track(frames, truth[10:11], 10)
    assert track.boxes.shape == (21, 4)
    assert track.boxes.dtype == track.score.dtype == np.float32
    assert iou(track.boxes, truth).min() > 0.6
    assert track.boxes[10].tolist() == truth[10].tolist()
    assert track.score[10] == 1
    assert track.origin[10] == "detected"
    assert {o for t, o in enumerate(track.origin) if t != 10} == {"tracked"}
    assert ((track.score >= 0) & (track.score <= 1)).all()


@pytest.mark.parametrize("key", [0, 20])
def test_the_key_frame_may_be_at_either_end(key):
    frames, truth = scene(MOVING)
    [track] = CSRTTracker().track(frames, truth[key : key + 1], key)
    assert iou(track.boxes, truth).mean() > 0.6


def test_a_key_box_between_pixels_keeps_its_fraction():
    """CSRT works on whole pixels of a reduced frame; boxes must not shrink or drift for it."""
    frames, truth = scene([(60, 40)] * 5)
    key = truth[2:3] + np.array([0.4, 0.4, -0.3, 0.3], np.float32)
    [track] = CSRTTracker(CSRTConfig(side=100)).track(frames, key, 2)
    assert iou(track.boxes, key).min() > 0.93


def test_it_says_when_the_target_is_gone_and_finds_it_again():
    frames, truth = scene([(60, 40)] * 6 + [None] * 12 + [(120, 70)] * 9)
    [track] = CSRTTracker().track(frames, truth[3:4], 3)
    assert iou(track.boxes[:6], truth[:6]).min() > 0.7
    assert not track.visible[10:18].any()
    assert iou(track.boxes[-5:], truth[-5:]).min() > 0.5
    lost = ~track.visible
    assert np.isnan(track.score[lost]).all()
    assert [o == "none" for o in track.origin] == lost.tolist()
    assert set(track.origin) <= set(ORIGINS)


def test_a_mirrored_target_is_found_again():
    frames, truth = scene([(60, 40)] * 4 + [None] * 8)
    mirrored, there = scene([(120, 70)] * 9, TARGET[:, ::-1])
    [track] = CSRTTracker().track(np.concatenate([frames, mirrored]), truth[2:3], 2)
    assert iou(track.boxes[-4:], there[-4:]).min() > 0.5


def test_boxes_stay_inside_the_frame():
    frames, truth = scene([(t * 8, 60) for t in range(20)])
    [track] = CSRTTracker().track(frames, truth[4:5], 4)
    inside = track.boxes[track.visible]
    assert (inside >= 0).all()
    assert (inside <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
    assert (area(inside) > 0).all()


def test_twice_is_the_same_and_targets_do_not_touch_each_other():
    frames, truth = scene(MOVING)
    other = np.array([[150, 10, 190, 50]], np.float32)
    tracker = CSRTTracker()
    alone, again = (
        tracker.track(frames, truth[10:11], 10)[0],
        tracker.track(frames, truth[10:11], 10)[0],
    )
    cv2.setRNGSeed(99)
    _, together = tracker.track(frames, np.concatenate([other, truth[10:11]]), 10)
    for track in (again, together):
        assert np.array_equal(track.boxes, alone.boxes, equal_nan=True)
        assert np.array_equal(track.score, alone.score, equal_nan=True)
        assert track.origin == alone.origin


def test_a_tiny_target_is_tracked_at_full_resolution():
    frames, truth = scene([(50 + 2 * t, 40) for t in range(9)], cv2.resize(TARGET, (9, 8)))
    frames, truth = np.kron(frames, np.ones((1, 4, 4, 1), np.uint8)), truth * 4
    assert is_box(truth).all()
    [track] = CSRTTracker().track(frames, truth[4:5], 4)
    assert iou(track.boxes, truth).min() > 0.5


def test_one_frame_is_enough():
    frames, truth = scene([(60, 40)])
    [track] = CSRTTracker().track(frames, truth, 0)
    assert track.origin == ["detected"]
    assert CSRTTracker().track(frames, np.zeros((0, 4), np.float32), 0) == []


@pytest.mark.parametrize(
    "box",
    [
        [np.nan] * 4,
        [5, 5, 5, 9],
        [9, 9, 5, 5],
        [-50, -50, -10, -10],
        [10, 10, 10.3, 40],
        [10, 10, 12, 11],
    ],
)
def test_a_degenerate_key_box_is_no_target(box):
    frames, _ = scene([(60, 40)] * 3)
    with pytest.raises(Quarantined) as caught:
        CSRTTracker().track(frames, np.array([box], np.float32), 1)
    assert (caught.value.reason, caught.value.stage) == (Reason.NO_TARGET, "track")


def test_a_key_frame_outside_the_clip_is_the_callers_mistake():
    frames, truth = scene([(60, 40)] * 3)
    with pytest.raises(ValueError, match="key_frame 3 is not one of 3 frames"):
        CSRTTracker().track(frames, truth[:1], 3)


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (3, 3)])
def test_frames_of_any_shape_are_survived(size):
    frames = rng.integers(0, 255, (3, *size, 3), np.uint8)
    box = np.array([[0, 0, size[1], size[0]]], np.float32)
    with suppress(Quarantined):
        [track] = CSRTTracker().track(frames, box, 1)
        assert track.visible[1]
